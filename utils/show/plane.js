// A map of images. `mountPlane(root, content)` fills a shadow root with it: points, and the pair of two selected points.

// colours that colour-blind readers can distinguish (Okabe and Ito 2008); each round of them has another shape
const POINT_COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F"];
const SHAPES = ["M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0", "M-1,-1h2v2h-2z", "M0,-1.2L1.2,1H-1.2z", "M0,-1.3L1.3,0L0,1.3L-1.3,0z"];
const SIDE = 100; // of the drawing, in its own units
const RADIUS = 1;
const NAMESPACE = "http://www.w3.org/2000/svg";

function svgElement(tag, attributes) {
  const node = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function mountPlane(root, content) {
  const { points } = content;
  const distances = new Uint16Array(bytesOf(content.distances).buffer);
  let selected = []; // numbers of at most two points, the older one first

  const look = (name) => {
    const number = content.classes.indexOf(name);
    const shape = (number + Math.floor(number / POINT_COLOURS.length)) % SHAPES.length;
    return { fill: POINT_COLOURS[number % POINT_COLOURS.length], d: SHAPES[shape] };
  };

  function sentence(first, second) {
    const step = distances[first * points.length + second];
    const distance = step / content.steps;
    const chance = content.probabilities ? `, of one class with probability ${content.probabilities[step].toFixed(2)}` : "";
    const [sameUpTo, differentFrom] = content.band;
    const decision = distance <= sameUpTo ? '"same"' : distance > differentFrom ? '"different"' : "nothing: undecided";
    const classes = [points[first].class, points[second].class];
    const actual = classes[0] === classes[1] ? `both are ${classes[0]}` : `${classes[0]} and ${classes[1]}`;
    return `Similarity ${(1 - distance / 2).toFixed(3)} (distance ${distance.toFixed(3)})${chance}: decided ${decision}; ${actual}.`;
  }

  const card = (number) =>
    element("figure", {}, [
      element("img", { src: points[number].source, alt: "" }),
      element("figcaption", { textContent: points[number].name }),
    ]);
  const hovered = element("div", { className: "hovered" });
  const pair = element("div", { className: "pair", attributes: { "aria-live": "polite" } });

  const svg = svgElement("svg", { viewBox: `-4 -4 ${SIDE + 8} ${SIDE + 8}`, role: "group", "aria-label": "map of images" });
  const symbols = points.map((point, number) => {
    const { fill, d } = look(point.class);
    const place = `translate(${point.x * SIDE},${point.y * SIDE}) scale(${RADIUS})`;
    const symbol = svgElement("path", { d, fill, "fill-opacity": 0.7, transform: place, role: "button", tabindex: number ? -1 : 0 });
    symbol.setAttribute("aria-label", point.name);
    symbol.addEventListener("pointerenter", () => hovered.replaceChildren(card(number)));
    symbol.addEventListener("focus", () => hovered.replaceChildren(card(number)));
    symbol.addEventListener("click", () => choose(number));
    return symbol;
  });
  svg.append(...symbols);

  function choose(number) {
    selected = selected.includes(number) ? selected.filter((index) => index !== number) : [...selected, number].slice(-2);
    symbols.forEach((symbol, index) => symbol.classList.toggle("selected", selected.includes(index)));
    const cards = selected.map(card);
    const words = selected.length === 2 ? sentence(...selected) : selected.length ? "Click a second point." : "";
    pair.replaceChildren(element("div", { className: "images" }, cards), element("p", { textContent: words }));
    if (selected.length === 2) {
      const files = selected.map((index) => JSON.stringify(points[index].path)).join(", ");
      const code = `view(trained.explain((${files})))`;
      pair.append(element("p", {}, ["Their heatmaps, in a cell: ", element("code", { textContent: code })]));
    }
  }

  // The nearest point in a direction, within a right angle.
  function next(number, across, down) {
    const here = points[number];
    let best = number;
    let least = Infinity;
    points.forEach((point, index) => {
      const [x, y] = [point.x - here.x, point.y - here.y];
      const along = x * across + y * down;
      const length = Math.hypot(x, y);
      if (index !== number && along > 0.7 * length && length < least) [best, least] = [index, length];
    });
    return best;
  }

  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  svg.addEventListener("keydown", (event) => {
    const number = symbols.indexOf(event.target);
    if (number < 0) return;
    if (event.key === "Enter" || event.key === " ") choose(number);
    else if (directions[event.key]) {
      const neighbour = next(number, ...directions[event.key]);
      symbols[number].setAttribute("tabindex", -1);
      symbols[neighbour].setAttribute("tabindex", 0);
      symbols[neighbour].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const legend = content.classes.map((name) => {
    const icon = svgElement("svg", { viewBox: "-1.5 -1.5 3 3", class: "icon", "aria-hidden": "true" });
    icon.append(svgElement("path", look(name)));
    return element("li", {}, [icon, name || "no class folder"]);
  });
  const part = points.length < content.images ? `${points.length} of ${content.images} images are shown. ` : "";
  const help = "Hover or focus a point to see its image; click two (or arrow keys and Enter) to see how similar they are.";
  root.append(
    element("p", { textContent: part + help }),
    element("div", { className: "plane" }, [
      svg,
      element("div", { className: "side" }, [element("ul", {}, legend), hovered, pair]),
    ]),
  );
}
