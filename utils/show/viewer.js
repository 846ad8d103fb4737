// The viewer of a pair. `mountViewer(root, content)` fills a shadow root with it; content is that of `view_content`.

const KINDS = ["factual", "counterfactual", "matches", "edit"];
const LARGEST_ZOOM = 8;
const FINE = 512; // pixels of a canvas along its longer side
const STEP = 0.04; // of a side: how far an arrow key moves a box, and the smallest box
const MIDDLE = [0.3, 0.3, 0.7, 0.7]; // the first box
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const BLUR = 12; // standard deviations of a blur in a side of the image, as in the function `blurred`
const COARSE = 96; // pixels of a side of the blurred image

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function element(tag, settings = {}, children = []) {
  const { attributes = {}, ...properties } = settings;
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function signed(value) {
  return (value < 0 ? "" : "+") + value.toFixed(4);
}

function within(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// Draw a heatmap over a canvas. look: its colours as bytes, its opacity, and the share from which it is solid.
function drawHeatmap(canvas, map, height, width, look) {
  const small = new ImageData(width, height);
  bytesOf(map).forEach((value, index) => {
    small.data.set(look.colours.subarray(3 * value, 3 * value + 3), 4 * index);
    small.data[4 * index + 3] = 255 * look.opacity * Math.min(value / 255 / look.solid, 1);
  });
  const source = element("canvas", { width, height });
  source.getContext("2d").putImageData(small, 0, 0);
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
}

const blurs = new Map(); // blurred canvases by the source of their picture: a redraw needs the same again

// A canvas with an image, squeezed to a square and blurred as by the function `blurred`. Not every browser can blur.
function blurredCanvas(picture) {
  if (blurs.has(picture.src)) return blurs.get(picture.src);
  const canvas = element("canvas", { width: COARSE, height: COARSE });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, COARSE, COARSE);
  const image = context.getImageData(0, 0, COARSE, COARSE);
  const sigma = COARSE / BLUR;
  const reach = Math.floor(2 * sigma);
  const weights = Float32Array.from({ length: 2 * reach + 1 }, (_, tap) => Math.exp(-(((tap - reach) / sigma) ** 2) / 2));
  const whole = weights.reduce((sum, weight) => sum + weight, 0);
  const mirrored = (place) => COARSE - 1 - Math.abs(COARSE - 1 - Math.abs(place)); // beyond the border
  for (const [along, across] of [[4, 4 * COARSE], [4 * COARSE, 4]]) { // in bytes: along rows, then along columns
    const before = image.data.slice();
    for (let place = 0; place < COARSE; place += 1) {
      const taps = Array.from(weights, (_, tap) => along * mirrored(place + tap - reach));
      for (let line = 0; line < COARSE; line += 1) {
        for (let colour = 0; colour < 4; colour += 1) {
          const start = across * line + colour;
          const sum = weights.reduce((total, weight, tap) => total + weight * before[start + taps[tap]], 0);
          image.data[start + along * place] = sum / whole;
        }
      }
    }
  }
  context.putImageData(image, 0, 0);
  if (picture.complete) blurs.set(picture.src, canvas);
  return canvas;
}

// The index of the cell that holds a share in [0, 1) of a side. edges: of the cells, from 0 to 1.
function cellAt(share, edges) {
  const after = edges.findIndex((edge) => share < edge);
  return after < 0 ? edges.length - 2 : Math.max(after - 1, 0);
}

// What each cell of image 1 and each cell of image 2 together add to the inner product.
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

  // What a cell of image 0 or 1 adds with each cell of the other image.
  matchesOf(image, cell) {
    const values = new Float32Array(this.cells);
    for (let partner = 0; partner < this.cells; partner += 1) {
      const index = image === 0 ? cell * this.cells + partner : partner * this.cells + cell;
      values[partner] = this.values[index] * this.scale;
    }
    return values;
  }

  strongestOf(image, cell) {
    return this.matchesOf(image, cell).reduce((most, value) => Math.max(most, value), 0);
  }

  box(cell) {
    const row = Math.floor(cell / this.across);
    const column = cell % this.across;
    return [this.columns[column], this.rows[row], this.columns[column + 1], this.rows[row + 1]];
  }

  // What a box of image 0 or 1 adds with each cell of the other image; a cell counts by the share that the box covers.
  matchesOfBox(image, [left, top, right, bottom]) {
    const values = new Float32Array(this.cells);
    const covered = (start, end, from, to) => Math.max(Math.min(end, to) - Math.max(start, from), 0) / (end - start);
    for (let cell = 0; cell < this.cells; cell += 1) {
      const [start, above, end, below] = this.box(cell);
      const share = covered(start, end, left, right) * covered(above, below, top, bottom);
      if (share > 0) this.matchesOf(image, cell).forEach((value, partner) => (values[partner] += share * value));
    }
    return values;
  }

  // The box of whole cells, as large as another, with the largest sum of values of cells, and this sum.
  counterpart(values, [left, top, right, bottom]) {
    const down = this.rows.length - 1;
    const tall = Math.max(Math.round((bottom - top) * down), 1);
    const wide = Math.max(Math.round((right - left) * this.across), 1);
    let best = { value: -Infinity };
    for (let row = 0; row + tall <= down; row += 1) {
      for (let column = 0; column + wide <= this.across; column += 1) {
        let value = 0;
        for (let y = row; y < row + tall; y += 1) {
          for (let x = column; x < column + wide; x += 1) value += values[y * this.across + x];
        }
        const box = [this.columns[column], this.rows[row], this.columns[column + wide], this.rows[row + tall]];
        if (value > best.value) best = { value, box };
      }
    }
    return best;
  }
}

// A box, [left, top, right, bottom], moved by steps down and across, or with its lower right corner moved.
function movedBox([left, top, right, bottom], [down, across], resize) {
  if (resize) {
    return [left, top, within(right + STEP * across, left + STEP, 1), within(bottom + STEP * down, top + STEP, 1)];
  }
  const x = within(STEP * across, -left, 1 - right);
  const y = within(STEP * down, -top, 1 - bottom);
  return [left + x, top + y, right + x, bottom + y];
}

// The box between two points, a step wide and high at least.
function boxBetween(start, end) {
  const left = within(Math.min(start.x, end.x), 0, 1 - STEP);
  const top = within(Math.min(start.y, end.y), 0, 1 - STEP);
  return [left, top, Math.max(start.x, end.x, left + STEP), Math.max(start.y, end.y, top + STEP)];
}

function mountViewer(root, content) {
  const state = {
    method: content.first,
    kind: "factual",
    colours: Object.keys(content.colours)[0],
    opacity: content.opacity,
    hidden: false,
    after: true,
    point: null, // {image, x, y}: the place whose matches are shown
    box: null, // {image, ends: [left, top, right, bottom]}: the box whose matches are shown
    window: null, // the number of the window that the box is, where what the network says without it is shown
    zoom: 1,
    middle: { x: 0.5, y: 0.5 },
  };
  const matches = content.matches && new PlaceMatches(content.matches);
  const { windows } = content;
  const colours = Object.fromEntries(Object.entries(content.colours).map(([name, text]) => [name, bytesOf(text)]));
  const kinds = KINDS.filter((kind) => kind === "factual" || kind === "counterfactual" || content[kind]);
  const methodOf = () => content.methods.find((method) => method.name === state.method);

  // The score and the decision, in words and as a bar.
  const symbol = { true: "\u2713 ", false: "\u2717 ", null: "" }[content.correct];
  const scale = element(
    "div",
    {
      className: "scale",
      attributes: {
        role: "img",
        "aria-label": `similarity ${content.similarity.toFixed(3)}`,
      },
    },
    [element("div", { className: "value" })],
  );
  scale.children[0].style.width = `${100 * content.similarity}%`;
  if (content.same_from !== null) {
    const threshold = element("div", { className: "threshold" });
    threshold.style.left = `${100 * content.same_from}%`;
    scale.append(threshold);
    scale.setAttribute("aria-label", `similarity ${content.similarity.toFixed(3)}, "same" from ${content.same_from.toFixed(3)} on`);
  }
  const head = element("div", {}, [
    element("p", { className: "decision", textContent: symbol + content.sentence }),
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
  const words = { factual: "factual", counterfactual: "counterfactual", matches: "what matches", edit: "an edit" };
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
    button("hide", "hide map (h)", () => set({ hidden: !state.hidden })),
    ...(content.edit ? [button("before", "before/after (b)", () => toggleEdit())] : []),
    ...(matches ? [button("box", "box (x)", () => toggleBox())] : []),
    ...(matches && windows ? [button("window", "hide it (d)", () => hideNearest())] : []),
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
    stage.setAttribute("aria-label", `image ${number + 1}: ${image.name}; arrow keys select a place, or move the box`);
    stage.style.aspectRatio = `${image.width} / ${image.height}`;
    stage.style.width = `min(100%, calc(52vh * ${image.width / image.height}))`;
    const caption = element("figcaption", {}, [
      element("div", { textContent: `image ${number + 1}: ${image.name}${image.class ? ` (${image.class})` : ""}` }),
      element("div", { className: "verdict" }),
    ]);
    const settings = { className: "image", attributes: { "data-image": number + 1 } };
    const figure = element("figure", settings, [stage, caption]);
    return { picture, canvas, layer, stage, caption, figure };
  });
  const shown = element("p", { className: "shown" });
  const bar = element("canvas", { width: 256, height: 1 });
  const barLabel = element("span");
  const matched = element("p", { className: "matched", attributes: { "aria-live": "polite" } });
  const help = element("p", { className: "help" }, [
    matches
      ? "Move over an image: the other one lights up where it matches. With a box, drag to draw another. Keys: "
      : "Keys: ",
    ...[
      ["f", "factual"],
      ["c", "counterfactual"],
      ...(matches
        ? [
            ["m", "matches"],
            ["arrows", "move the place or the box"],
            ["x", "a box"],
            ["Shift+arrows", "resize the box"],
            ["Esc", "no place, no box"],
          ]
        : []),
      ...(matches && windows ? [["d", "hide the box"]] : []),
      ["h", "hide or show the map"],
      ...(content.edit ? [["b", "before or after the edit"]] : []),
      ["+ - 0", "zoom"],
    ].flatMap(([key, meaning]) => [element("kbd", { textContent: key }), ` ${meaning}  `]),
  ]);
  const body = element("div", { className: "viewer" }, [
    head,
    controls,
    shown,
    element("div", { className: "images" }, views.map((view) => view.figure)),
    element("div", { className: "bar" }, ["0", bar, barLabel]),
    matched,
    help,
  ]);
  root.append(body);

  // The image of the file; or, for an edit, that before or after it, at the resolution of the network.
  function sourceOf(number) {
    if (state.kind !== "edit") return content.images[number].source;
    return state.after ? content.edit.after[number] : content.edit.before[number];
  }

  // Drawing. Maps that are not better than chance are grey.
  const grey = bytesOf(content.grey);
  function coloursShown() {
    const ofMaps = state.kind === "factual" || state.kind === "counterfactual";
    return ofMaps && !state.point && !state.box && !methodOf().believed ? grey : colours[state.colours];
  }

  function colourOf(share) {
    const index = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
    return coloursShown().subarray(index, index + 3);
  }

  function cover(share) {
    return state.opacity * Math.min(share / content.solid, 1);
  }

  // Draw cells in colours that are shares of `strongest`, and none where that is nearly 0.
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
    const pixel = Math.max(canvas.width / (canvas.clientWidth || canvas.width), 1); // of a small screen
    for (const [colour, width] of [["black", 5], ["white", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * pixel;
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

  // Blur a box of an image, to show what was hidden.
  function drawBlurred({ canvas, picture }, [left, top, right, bottom]) {
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.save();
    context.beginPath();
    context.rect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    context.clip();
    context.drawImage(blurredCanvas(picture), 0, 0, width, height);
    context.restore();
  }

  function drawBox(view, number, { values, strongest, counterpart }) {
    const { image, ends } = state.box;
    if (number !== image) {
      drawCells(view.canvas, values, strongest);
      outline(view.canvas, counterpart.box);
      return;
    }
    if (state.window !== null) drawBlurred(view, ends);
    outline(view.canvas, ends);
  }

  // What the box adds: with each cell of the other image, at most, in all, and with its counterpart.
  function ofBox() {
    const values = matches.matchesOfBox(state.box.image, state.box.ends);
    const strongest = values.reduce((most, value) => Math.max(most, value), 0);
    const total = values.reduce((sum, value) => sum + value, 0);
    return { values, strongest, total, counterpart: matches.counterpart(values, state.box.ends) };
  }

  function drawPair() {
    const method = methodOf();
    const boxed = state.box && ofBox();
    const selected = matches && state.point;
    const cell = selected && matches.cellOf(state.point);
    views.forEach((view, number) => {
      const { canvas, picture, caption } = view;
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      const source = sourceOf(number);
      if (picture.getAttribute("src") !== source) picture.src = source;
      caption.lastChild.textContent = method.verdicts && state.kind === "factual" ? method.verdicts[number] : "";
      if (boxed) {
        drawBox(view, number, boxed);
      } else if (selected && state.point.image === number) {
        outline(canvas, matches.box(cell));
      } else if (selected) {
        drawCells(canvas, matches.matchesOf(state.point.image, cell), matches.strongestOf(state.point.image, cell));
      } else if (state.hidden) {
        return;
      } else if (state.kind === "edit") {
        const { regions, height, width } = content.edit;
        drawRegion(canvas, regions[number], height, width);
      } else if (state.kind === "matches") {
        const strongest = Float32Array.from({ length: matches.cells }, (_, index) => matches.strongestOf(number, index));
        drawCells(canvas, strongest, matches.strongest);
      } else {
        const look = { colours: coloursShown(), opacity: state.opacity, solid: content.solid };
        drawHeatmap(canvas, method.maps[state.kind][number], method.height, method.width, look);
        const words = [method.weak[state.kind][number], caption.lastChild.textContent];
        caption.lastChild.textContent = words.filter(Boolean).join(". ");
      }
    });
    shown.textContent = wordsShown(method);
    if (boxed) matched.textContent = wordsOfBox(boxed);
    else if (selected) matched.textContent = wordsOfPlace(cell);
    else matched.textContent = "";
  }

  function wordsShown(method) {
    if (state.kind === "edit") {
      const [before, after] = content.edit.similarities;
      const word = state.after ? `after: similarity ${after.toFixed(3)}` : `before: similarity ${before.toFixed(3)}`;
      return `Shown: the pair ${word}. ${content.edit.sentence}`;
    }
    if (state.kind === "matches") {
      const { layer, places, residual, cosine } = content.matches;
      return (
        `Shown: the strongest match of each place at ${layer}. All pairs of places add ${signed(places)} to the inner ` +
        `product of both embeddings, ${cosine.toFixed(4)}; the biases, which have no place, add ${signed(cosine - places - residual)}, ` +
        `the error of the sum is ${signed(residual)}.`
      );
    }
    const verdict = state.kind === "factual" || !method.verdicts ? method.verdict : "Verdicts are on the factual maps.";
    return `${method.headings[state.kind]}, by ${method.description}. ${verdict}`;
  }

  function wordsOfPlace(cell) {
    const values = matches.matchesOf(state.point.image, cell);
    const most = values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
    const [left, top, right, bottom] = matches.box(most);
    const place = `${percent((top + bottom) / 2)} down, ${percent((left + right) / 2)} across`;
    const total = values.reduce((sum, value) => sum + value, 0);
    if (values[most] <= content.matches.faint * matches.strongest) {
      return (
        `This place of image ${state.point.image + 1} has no match: at most ${signed(values[most])}, ` +
        `no more than a tenth of the pair's strongest match (${signed(matches.strongest)}).`
      );
    }
    return (
      `This place of image ${state.point.image + 1} matches image ${2 - state.point.image} most at ${place}: ` +
      `${signed(values[most])} of ${signed(content.matches.places)}, the sum over all pairs of places (the strongest ` +
      `match is ${signed(matches.strongest)}); with all places together ${signed(total)}.`
    );
  }

  function wordsOfBox({ total, counterpart }) {
    const { places, cosine } = content.matches;
    const number = state.box.image + 1;
    const share = places > 0 ? `, ${percent(total / places)} of what all pairs of places add (${signed(places)})` : "";
    const added =
      `The box in image ${number} adds ${signed(total)} to the inner product of both embeddings, ` +
      `${cosine.toFixed(4)}${share}; ${signed(counterpart.value)} with its counterpart, outlined in image ${3 - number}.`;
    if (state.window === null) return added;
    const { before, boxes } = windows;
    const after = windows.after[state.box.image][state.window];
    const probability =
      after.probability === undefined
        ? ""
        : `probability of one class ${after.probability.toFixed(2)} (before ${before.probability.toFixed(2)}), `;
    return (
      `With exactly this box of image ${number} blurred, the network says: similarity ${after.similarity.toFixed(3)} ` +
      `(before ${before.similarity.toFixed(3)}), ${probability}decision "${after.decision}" (before "${before.decision}"). ` +
      `It saw ${boxes.length} such boxes of each image when this page was made; yours moved to the nearest. ${added}`
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
    if (state.box) return `${signed(ofBox().strongest)}, the strongest match of the box`;
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
      const start = within(state.middle[axis] - 0.5 / state.zoom, 0, reach);
      state.middle[axis] = start + 0.5 / state.zoom;
    }
    const move = (axis) => `${100 * (0.5 - state.middle[axis] * state.zoom)}%`;
    for (const { layer } of views) {
      layer.style.transform = `translate(${move("x")}, ${move("y")}) scale(${state.zoom})`;
    }
  }

  function draw() {
    for (const select of controls.querySelectorAll("select")) select.value = state[select.name];
    controls.querySelector("[name=hide]").textContent = state.hidden ? "show map (h)" : "hide map (h)";
    controls.querySelector("[name=box]")?.setAttribute("aria-pressed", state.box !== null);
    body.classList.toggle("boxed", state.box !== null);
    drawPair();
    drawBar();
    place();
  }

  function set(changes) {
    Object.assign(state, changes);
    if (state.kind === "edit") Object.assign(state, { point: null, box: null }); // they are of the images before it
    draw();
  }

  function toggleEdit() {
    if (content.edit) set({ kind: "edit", after: state.kind !== "edit" || !state.after });
  }

  function setBox(image, ends, window = null) {
    views[image].stage.focus({ preventScroll: true }); // so that arrow keys move the box
    set({ box: { image, ends }, window, point: null, kind: state.kind === "edit" ? "factual" : state.kind });
  }

  function toggleBox() {
    if (!matches) return;
    if (state.box) {
      set({ box: null });
      return;
    }
    const focused = views.findIndex((view) => view.stage === body.getRootNode().activeElement);
    setBox(Math.max(focused, 0), MIDDLE);
  }

  function hideNearest() {
    if (!matches || !windows) return;
    if (!state.box) toggleBox();
    const { image, ends } = state.box;
    const boxes = windows.boxes.map(([top, left, bottom, right]) => [left, top, right, bottom]);
    const farFrom = ([left, top, right, bottom]) =>
      Math.hypot(left + right - ends[0] - ends[2], top + bottom - ends[1] - ends[3]);
    const nearest = boxes.reduce((best, box, number) => (farFrom(box) < farFrom(boxes[best]) ? number : best), 0);
    setBox(image, boxes[nearest], nearest);
  }

  function zoom(factor, middle = state.point || state.middle) {
    set({ zoom: within(state.zoom * factor, 1, LARGEST_ZOOM), middle: { x: middle.x, y: middle.y } });
  }

  // Pointer and keys.
  function pointOf(event, stage) {
    const box = stage.getBoundingClientRect();
    const share = (length, start, side, axis) =>
      state.middle[axis] + ((length - start) / side - 0.5) / state.zoom;
    const x = share(event.clientX, box.left, box.width, "x");
    const y = share(event.clientY, box.top, box.height, "y");
    return { x: within(x, 0, 1), y: within(y, 0, 1) };
  }

  views.forEach(({ stage }, number) => {
    let dragged = null;
    let corner = null; // of the box that is drawn
    const select = (event) => {
      if (state.box) {
        if (dragged) setBox(number, boxBetween(corner, pointOf(event, stage)));
      } else if (dragged && state.zoom > 1) {
        const box = stage.getBoundingClientRect();
        state.middle.x -= (event.clientX - dragged.x) / box.width / state.zoom;
        state.middle.y -= (event.clientY - dragged.y) / box.height / state.zoom;
        dragged = { x: event.clientX, y: event.clientY };
        place();
      } else if (matches && state.kind !== "edit") {
        set({ point: { image: number, ...pointOf(event, stage) } });
      }
    };
    stage.addEventListener("pointermove", select);
    stage.addEventListener("pointerdown", (event) => {
      select(event);
      dragged = { x: event.clientX, y: event.clientY };
      corner = pointOf(event, stage);
      if (state.box) stage.setPointerCapture(event.pointerId); // a box may be drawn beyond the border
    });
    stage.addEventListener("selectstart", (event) => event.preventDefault()); // a drag selects no words around it
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) {
      stage.addEventListener(end, () => {
        dragged = null;
      });
    }
    stage.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") set({ point: null }); // a finger leaves when it is lifted
    });
    stage.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (!matches || !step || state.kind === "edit") return;
      event.preventDefault();
      if (state.box) {
        setBox(number, movedBox(state.box.ends, step, event.shiftKey));
        return;
      }
      const here = state.point && state.point.image === number ? state.point : { x: 0.5, y: 0.5 };
      const [row, column] = [cellAt(here.y, matches.rows), cellAt(here.x, matches.columns)];
      const middleOf = (edges, cell) => {
        const inside = within(cell, 0, edges.length - 2);
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
    b: toggleEdit,
    x: toggleBox,
    d: hideNearest,
    "+": () => zoom(2),
    "=": () => zoom(2),
    "-": () => zoom(0.5),
    0: () => zoom(1 / LARGEST_ZOOM),
    Escape: () => set({ point: null, box: null }),
  };
  body.tabIndex = -1;
  body.addEventListener("pointerenter", () => {
    if (document.activeElement === document.body) body.focus({ preventScroll: true }); // so that keys work at once
  });
  body.addEventListener("keydown", (event) => {
    const target = event.composedPath()[0];
    const typing = target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey;
    if (typing || !keys[event.key]) return;
    if (event.key === "Escape" && !state.point && !state.box) return; // a dialog around it closes
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  draw();
}
