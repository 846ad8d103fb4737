// A map of images. `mountPlane(root, content)` fills a shadow root with it: points, and the pair of two clicked ones.

// colours that the colour-blind tell apart (Okabe and Ito 2008); each round of them has another shape
const POINT_COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"];
const SHAPES = ["M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0", "M-1,-1h2v2h-2z", "M0,-1.2L1.2,1H-1.2z", "M0,-1.3L1.3,0L0,1.3L-1.3,0z"];
const SIDE = 100; // of the drawing, in its own units
const RADIUS = 1;
const NAMESPACE = "http://www.w3.org/2000/svg";

function drawn(tag, attributes) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function mountPlane(root, content) {
  const { points } = content;
  const distances = new Uint16Array(bytesOf(content.distances).buffer);
  let chosen = []; // numbers of at most two points, the older one first

  const look = (name) => {
    const number = content.classes.indexOf(name);
    const shape = (number + Math.floor(number / POINT_COLOURS.length)) % SHAPES.length;
    return { fill: POINT_COLOURS[number % POINT_COLOURS.length], d: SHAPES[shape] };
  };

  function sentence(first, second) {
    const step = distances[first * points.length + second];
    const apart = step / content.steps;
    const chance = content.probabilities ? `, of one class with probability ${content.probabilities[step].toFixed(2)}` : "";
    const [sameUpTo, differentFrom] = content.band.length ? content.band : [content.threshold, content.threshold];
    const decision = apart <= sameUpTo ? '"same"' : apart > differentFrom ? '"different"' : "nothing: undecided";
    const classes = [points[first].class, points[second].class];
    const truth = classes[0] === classes[1] ? `both lie in ${classes[0]}` : `${classes[0]} and ${classes[1]}`;
    return `Similarity ${(1 - apart / 2).toFixed(3)} (distance ${apart.toFixed(3)})${chance}: decided ${decision}; ${truth}.`;
  }

  const card = (number) =>
    element("figure", {}, [
      element("img", { src: points[number].source, alt: "" }),
      element("figcaption", { textContent: points[number].name }),
    ]);
  const hovered = element("div", { className: "hovered" });
  const pair = element("div", { className: "pair", attributes: { "aria-live": "polite" } });

  const svg = drawn("svg", { viewBox: `-4 -4 ${SIDE + 8} ${SIDE + 8}`, role: "group", "aria-label": "map of images" });
  const marks = points.map((point, number) => {
    const { fill, d } = look(point.class);
    const place = `translate(${point.x * SIDE},${point.y * SIDE}) scale(${RADIUS})`;
    const mark = drawn("path", { d, fill, "fill-opacity": 0.7, transform: place, role: "button", tabindex: number ? -1 : 0 });
    mark.setAttribute("aria-label", point.name);
    mark.addEventListener("pointerenter", () => hovered.replaceChildren(card(number)));
    mark.addEventListener("focus", () => hovered.replaceChildren(card(number)));
    mark.addEventListener("click", () => choose(number));
    return mark;
  });
  svg.append(...marks);

  function choose(number) {
    chosen = chosen.includes(number) ? chosen.filter((one) => one !== number) : [...chosen, number].slice(-2);
    marks.forEach((mark, index) => mark.classList.toggle("chosen", chosen.includes(index)));
    const cards = chosen.map(card);
    const words = chosen.length === 2 ? sentence(...chosen) : chosen.length ? "Click a second point." : "";
    pair.replaceChildren(element("div", { className: "images" }, cards), element("p", { textContent: words }));
  }

  // The nearest point that lies that way, within a right angle.
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

  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  svg.addEventListener("keydown", (event) => {
    const number = marks.indexOf(event.target);
    if (number < 0) return;
    if (event.key === "Enter" || event.key === " ") choose(number);
    else if (ways[event.key]) {
      const other = next(number, ...ways[event.key]);
      marks[number].setAttribute("tabindex", -1);
      marks[other].setAttribute("tabindex", 0);
      marks[other].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const legend = content.classes.map((name) => {
    const icon = drawn("svg", { viewBox: "-1.5 -1.5 3 3", class: "icon", "aria-hidden": "true" });
    icon.append(drawn("path", look(name)));
    return element("li", {}, [icon, name || "no class folder"]);
  });
  const part = points.length < content.images ? `${points.length} of ${content.images} images are shown. ` : "";
  const help = "Hover or focus a point to see its image; click two (or arrow keys and Enter) to see how alike they are.";
  root.append(
    element("p", { textContent: part + help }),
    element("div", { className: "plane" }, [
      svg,
      element("div", { className: "side" }, [element("ul", {}, legend), hovered, pair]),
    ]),
  );
}
