// The viewer of a pair. `mountViewer(root, content)` fills a shadow root with it; content is that of `view_content`.

const KINDS = ["factual", "counterfactual", "matches", "change"];
const LONGEST_ZOOM = 8;
const FINE = 512; // pixels of a canvas along its longer side

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function element(tag, settings = {}, children = []) {
  const { attributes = {}, ...properties } = settings;
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function signed(value) {
  return (value < 0 ? "" : "+") + value.toFixed(4);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// A heatmap, laid over a canvas. look: its colours as bytes, its opacity, and the share from which on it is solid.
function drawHeatmap(canvas, map, height, width, look) {
  const small = new ImageData(width, height);
  bytesOf(map).forEach((value, index) => {
    small.data.set(look.colours.subarray(3 * value, 3 * value + 3), 4 * index);
    small.data[4 * index + 3] = 255 * look.opacity * Math.min(value / 255 / look.solid, 1);
  });
  const made = element("canvas", { width, height });
  made.getContext("2d").putImageData(small, 0, 0);
  canvas.getContext("2d").drawImage(made, 0, 0, canvas.width, canvas.height);
}

// The cell, counted from 0, that a share in [0, 1) of a side lies in; edges: 0, ..., 1.
function cellAt(share, edges) {
  const after = edges.findIndex((edge) => share < edge);
  return after < 0 ? edges.length - 2 : Math.max(after - 1, 0);
}

// All cells of image 1 beside all of image 2, and what two of them add to the inner product.
class PlaceMatches {
  constructor(content) {
    this.rows = content.rows;
    this.columns = content.columns;
    this.across = content.columns.length - 1;
    this.cells = this.across * (content.rows.length - 1);
    this.values = new Int16Array(bytesOf(content.values).buffer);
    this.scale = content.scale;
    this.strongest = this.values.reduce((most, value) => Math.max(most, value), 0) * content.scale;
  }

  cellOf(point) {
    return cellAt(point.y, this.rows) * this.across + cellAt(point.x, this.columns);
  }

  // What a cell of an image, 0 or 1, adds with each cell of the other one.
  matchesOf(image, cell) {
    const found = new Float32Array(this.cells);
    for (let other = 0; other < this.cells; other += 1) {
      const index = image === 0 ? cell * this.cells + other : other * this.cells + cell;
      found[other] = this.values[index] * this.scale;
    }
    return found;
  }

  strongestOf(image, cell) {
    return this.matchesOf(image, cell).reduce((most, value) => Math.max(most, value), 0);
  }

  box(cell) {
    const row = Math.floor(cell / this.across);
    const column = cell % this.across;
    return [this.columns[column], this.rows[row], this.columns[column + 1], this.rows[row + 1]];
  }
}

function mountViewer(root, content) {
  const state = {
    method: content.first,
    kind: "factual",
    colours: Object.keys(content.colours)[0],
    opacity: content.opacity,
    hidden: false,
    after: true,
    point: null, // {image, x, y}: where one asks for matches
    zoom: 1,
    middle: { x: 0.5, y: 0.5 },
  };
  const matches = content.matches && new PlaceMatches(content.matches);
  const colours = Object.fromEntries(Object.entries(content.colours).map(([name, text]) => [name, bytesOf(text)]));
  const kinds = KINDS.filter((kind) => kind === "factual" || kind === "counterfactual" || content[kind]);
  const methodOf = () => content.methods.find((method) => method.name === state.method);

  // What stands above: the score and the decision, in words and as a bar.
  const mark = { true: "\u2713 ", false: "\u2717 ", null: "" }[content.right];
  const scale = element(
    "div",
    {
      className: "scale",
      attributes: {
        role: "img",
        "aria-label": `similarity ${content.similarity.toFixed(3)}, "same" from ${content.least.toFixed(3)} on`,
      },
    },
    [element("div", { className: "value" }), element("div", { className: "threshold" })],
  );
  scale.children[0].style.width = `${100 * content.similarity}%`;
  scale.children[1].style.left = `${100 * content.least}%`;
  const head = element("div", {}, [
    element("p", { className: "decision", textContent: mark + content.sentence }),
    scale,
  ]);

  // The controls.
  const choice = (name, label, values, words = values) =>
    element("label", {}, [
      label,
      element(
        "select",
        { name, onchange: (event) => set({ [name]: event.target.value }) },
        values.map((value, index) => element("option", { value, textContent: words[index] })),
      ),
    ]);
  const words = { factual: "factual", counterfactual: "counterfactual", matches: "what matches", change: "a change" };
  const opacity = element("input", {
    type: "range",
    name: "opacity",
    min: 0,
    max: 1,
    step: 0.05,
    value: content.opacity,
    oninput: (event) => set({ opacity: Number(event.target.value) }),
    attributes: { "aria-label": "opacity of the map" },
  });
  const button = (name, textContent, onclick) => element("button", { type: "button", name, textContent, onclick });
  const controls = element("div", { className: "controls" }, [
    choice("method", "method ", content.methods.map((method) => method.name)),
    choice("kind", "show ", kinds, kinds.map((kind) => words[kind])),
    element("label", {}, ["opacity ", opacity]),
    choice("colours", "colours ", Object.keys(content.colours)),
    button("hide", "hide (h)", () => set({ hidden: !state.hidden })),
    ...(content.change ? [button("before", "before/after (b)", () => toggleChange())] : []),
    button("in", "zoom +", () => zoom(2)),
    button("out", "zoom -", () => zoom(0.5)),
  ]);

  // The two images, each with a canvas over it.
  const views = content.images.map((image, number) => {
    const picture = element("img", { src: image.source, alt: "", draggable: false });
    const canvas = element("canvas");
    const longer = Math.max(image.width, image.height);
    canvas.width = Math.max(Math.round((FINE * image.width) / longer), 1);
    canvas.height = Math.max(Math.round((FINE * image.height) / longer), 1);
    if (longer < FINE / 2) picture.className = "pixelated";
    const layer = element("div", { className: "layer" }, [picture, canvas]);
    const stage = element("div", { className: "stage", tabIndex: 0, attributes: { role: "application" } }, [layer]);
    stage.setAttribute("aria-label", `image ${number + 1}: ${image.name}; arrow keys ask what a place matches`);
    stage.style.aspectRatio = `${image.width} / ${image.height}`;
    stage.style.width = `min(100%, calc(52vh * ${image.width / image.height}))`;
    const caption = element("figcaption", {}, [
      element("div", { textContent: `image ${number + 1}: ${image.name}${image.class ? ` (${image.class})` : ""}` }),
      element("div", { className: "said" }),
    ]);
    const settings = { className: "image", attributes: { "data-image": number + 1 } };
    const figure = element("figure", settings, [stage, caption]);
    return { picture, canvas, layer, stage, caption, figure };
  });
  const shown = element("p", { className: "shown" });
  const bar = element("canvas", { width: 256, height: 1 });
  const barLabel = element("span");
  const said = element("p", { className: "matched", attributes: { "aria-live": "polite" } });
  const help = element("p", { className: "help" }, [
    matches ? "Move over an image: the other one lights up where it matches. Keys: " : "Keys: ",
    ...[
      ["f", "factual"],
      ["c", "counterfactual"],
      ...(matches ? [["m", "matches"], ["arrows", "move the place"], ["Esc", "no place"]] : []),
      ["h", "hide or show the map"],
      ...(content.change ? [["b", "before or after the change"]] : []),
      ["+ - 0", "zoom"],
    ].flatMap(([key, meaning]) => [element("kbd", { textContent: key }), ` ${meaning}  `]),
  ]);
  const body = element("div", { className: "viewer" }, [
    head,
    controls,
    shown,
    element("div", { className: "images" }, views.map((one) => one.figure)),
    element("div", { className: "bar" }, ["0", bar, barLabel]),
    said,
    help,
  ]);
  root.append(body);

  // The image as it is, before the change, at the network's resolution, or after it; null where that is the same.
  function sourceOf(number, changed) {
    const before = (changed && changed.before[number]) || content.images[number].source;
    return (changed && state.after && changed.after[number]) || before;
  }

  // Drawing.
  function colourOf(share) {
    const index = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
    return colours[state.colours].subarray(index, index + 3);
  }

  function cover(share) {
    return state.opacity * Math.min(share / content.solid, 1);
  }

  // Cells in colours that are shares of `strongest`; where that is next to nothing, none.
  function drawCells(canvas, values, strongest) {
    if (strongest <= content.matches.faint * matches.strongest) return;
    const context = canvas.getContext("2d");
    values.forEach((value, cell) => {
      const share = value / strongest;
      if (share <= 0) return;
      const [left, top, right, bottom] = matches.box(cell);
      context.fillStyle = `rgba(${colourOf(share).join(",")},${cover(share)})`;
      const [x, y] = [Math.round(left * canvas.width), Math.round(top * canvas.height)];
      context.fillRect(x, y, Math.round(right * canvas.width) - x, Math.round(bottom * canvas.height) - y);
    });
  }

  function outline(canvas, [left, top, right, bottom]) {
    const context = canvas.getContext("2d");
    for (const [colour, width] of [["black", 5], ["white", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(
        left * canvas.width,
        top * canvas.height,
        (right - left) * canvas.width,
        (bottom - top) * canvas.height,
      );
    }
  }

  function drawRegion(canvas, region, height, width) {
    const inside = bytesOf(region);
    const at = (y, x) => y >= 0 && x >= 0 && y < height && x < width && inside[y * width + x];
    const context = canvas.getContext("2d");
    const [down, across] = [canvas.height / height, canvas.width / width];
    context.fillStyle = "white";
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        if (!at(y, x)) continue;
        if (!at(y - 1, x)) context.fillRect(x * across, y * down, across, 2);
        if (!at(y + 1, x)) context.fillRect(x * across, (y + 1) * down - 2, across, 2);
        if (!at(y, x - 1)) context.fillRect(x * across, y * down, 2, down);
        if (!at(y, x + 1)) context.fillRect((x + 1) * across - 2, y * down, 2, down);
      }
    }
  }

  function drawPair() {
    const method = methodOf();
    const asked = matches && state.point;
    const cell = asked && matches.cellOf(state.point);
    views.forEach(({ canvas, picture, caption }, number) => {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      const changed = state.kind === "change" && content.change;
      const source = sourceOf(number, changed);
      if (picture.getAttribute("src") !== source) picture.src = source;
      caption.lastChild.textContent = method.verdicts && !changed ? method.verdicts[number] : "";
      if (asked && state.point.image === number) {
        outline(canvas, matches.box(cell));
      } else if (asked) {
        drawCells(canvas, matches.matchesOf(state.point.image, cell), matches.strongestOf(state.point.image, cell));
      } else if (state.hidden) {
        return;
      } else if (changed) {
        const { regions, height, width } = content.change;
        drawRegion(canvas, regions[number], height, width);
      } else if (state.kind === "matches") {
        const strongest = Float32Array.from({ length: matches.cells }, (_, one) => matches.strongestOf(number, one));
        drawCells(canvas, strongest, matches.strongest);
      } else {
        const look = { colours: colours[state.colours], opacity: state.opacity, solid: content.solid };
        drawHeatmap(canvas, method.maps[state.kind][number], method.height, method.width, look);
        const words = [method.weak[state.kind][number], caption.lastChild.textContent];
        caption.lastChild.textContent = words.filter(Boolean).join(". ");
      }
    });
    shown.textContent = wordsShown(method);
    if (asked) said.textContent = wordsMatched(cell);
    else said.textContent = matches ? "No place is asked for." : "";
  }

  function wordsShown(method) {
    if (state.kind === "change") {
      const [before, after] = content.change.similarities;
      const word = state.after ? `after: similarity ${after.toFixed(3)}` : `before: similarity ${before.toFixed(3)}`;
      return `Shown: the pair ${word}. ${content.change.sentence}`;
    }
    if (state.kind === "matches") {
      const { layer, places, residual, cosine } = content.matches;
      return (
        `Shown: the strongest match of each place at ${layer}. All pairs of places add ${signed(places)} to the inner ` +
        `product of both embeddings, ${cosine.toFixed(4)}; the biases add ${signed(cosine - places - residual)}, ` +
        `the residual is ${signed(residual)}.`
      );
    }
    return `Shown: ${method.headings[state.kind]}, by ${method.source}. ${method.verdict}`;
  }

  function wordsMatched(cell) {
    const values = matches.matchesOf(state.point.image, cell);
    const most = values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
    const [left, top, right, bottom] = matches.box(most);
    const place = `${percent((top + bottom) / 2)} down, ${percent((left + right) / 2)} across`;
    const total = values.reduce((sum, value) => sum + value, 0);
    if (values[most] <= content.matches.faint * matches.strongest) {
      return (
        `This place of image ${state.point.image + 1} matches next to nothing: at most ${signed(values[most])}, ` +
        `no more than a tenth of the pair's strongest match (${signed(matches.strongest)}).`
      );
    }
    return (
      `This place of image ${state.point.image + 1} matches image ${2 - state.point.image} most at ${place}: ` +
      `${signed(values[most])} of all that pairs of places add, ${signed(content.matches.places)} (strongest of the ` +
      `pair ${signed(matches.strongest)}); with all places of it ${signed(total)}.`
    );
  }

  function drawBar() {
    const row = new ImageData(256, 1);
    for (let index = 0; index < 256; index += 1) {
      row.data.set(colourOf(index / 255), 4 * index);
      row.data[4 * index + 3] = 255;
    }
    bar.getContext("2d").putImageData(row, 0, 0);
    barLabel.textContent = wordsOfBar();
  }

  function wordsOfBar() {
    if (matches && state.point) {
      const strongest = matches.strongestOf(state.point.image, matches.cellOf(state.point));
      return `${signed(strongest)}, the strongest match of this place`;
    }
    if (state.kind === "matches") return `${signed(matches.strongest)}, the strongest match of the pair`;
    return "the image's strongest evidence";
  }

  function place() {
    const reach = 1 - 1 / state.zoom;
    for (const axis of ["x", "y"]) {
      const start = Math.min(Math.max(state.middle[axis] - 0.5 / state.zoom, 0), reach);
      state.middle[axis] = start + 0.5 / state.zoom;
    }
    const move = (axis) => `${100 * (0.5 - state.middle[axis] * state.zoom)}%`;
    for (const { layer } of views) {
      layer.style.transform = `translate(${move("x")}, ${move("y")}) scale(${state.zoom})`;
    }
  }

  function draw() {
    for (const select of controls.querySelectorAll("select")) select.value = state[select.name];
    controls.querySelector("[name=hide]").textContent = state.hidden ? "show (h)" : "hide (h)";
    drawPair();
    drawBar();
    place();
  }

  function set(changes) {
    Object.assign(state, changes);
    draw();
  }

  function toggleChange() {
    if (content.change) set({ kind: "change", after: state.kind !== "change" || !state.after, point: null });
  }

  function zoom(factor, middle = state.point || state.middle) {
    set({ zoom: Math.min(Math.max(state.zoom * factor, 1), LONGEST_ZOOM), middle: { x: middle.x, y: middle.y } });
  }

  // Pointer and keys.
  function pointOf(event, stage) {
    const box = stage.getBoundingClientRect();
    const share = (length, start, side, axis) =>
      state.middle[axis] + ((length - start) / side - 0.5) / state.zoom;
    const x = share(event.clientX, box.left, box.width, "x");
    const y = share(event.clientY, box.top, box.height, "y");
    const within = (value) => Math.min(Math.max(value, 0), 0.9999);
    return { x: within(x), y: within(y) };
  }

  views.forEach(({ stage }, number) => {
    let dragged = null;
    const ask = (event) => {
      if (dragged && state.zoom > 1) {
        const box = stage.getBoundingClientRect();
        state.middle.x -= (event.clientX - dragged.x) / box.width / state.zoom;
        state.middle.y -= (event.clientY - dragged.y) / box.height / state.zoom;
        dragged = { x: event.clientX, y: event.clientY };
        place();
      } else if (matches && state.kind !== "change") {
        set({ point: { image: number, ...pointOf(event, stage) } });
      }
    };
    stage.addEventListener("pointermove", ask);
    stage.addEventListener("pointerdown", (event) => {
      ask(event);
      dragged = { x: event.clientX, y: event.clientY };
    });
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) {
      stage.addEventListener(end, () => {
        dragged = null;
      });
    }
    stage.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") set({ point: null }); // a finger leaves when it is lifted
    });
    stage.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const step = steps[event.key];
      if (!matches || !step || state.kind === "change") return;
      event.preventDefault();
      const here = state.point && state.point.image === number ? state.point : { x: 0.5, y: 0.5 };
      const [row, column] = [cellAt(here.y, matches.rows), cellAt(here.x, matches.columns)];
      const middleOf = (edges, cell) => {
        const inside = Math.min(Math.max(cell, 0), edges.length - 2);
        return (edges[inside] + edges[inside + 1]) / 2;
      };
      set({
        point: {
          image: number,
          y: middleOf(matches.rows, row + step[0]),
          x: middleOf(matches.columns, column + step[1]),
        },
      });
    });
  });

  const keys = {
    f: () => set({ kind: "factual" }),
    c: () => set({ kind: "counterfactual" }),
    m: () => matches && set({ kind: "matches" }),
    h: () => set({ hidden: !state.hidden }),
    b: toggleChange,
    "+": () => zoom(2),
    "=": () => zoom(2),
    "-": () => zoom(0.5),
    0: () => zoom(1 / LONGEST_ZOOM),
    Escape: () => set({ point: null }),
  };
  body.addEventListener("keydown", (event) => {
    const named = event.composedPath()[0];
    const typing = named.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey;
    if (typing || !keys[event.key]) return;
    if (event.key === "Escape" && !state.point) return; // a dialog around it closes
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  draw();
}
