// Many pairs. `mountGrid(root, content)` fills a shadow root with them; each opens in a viewer.

const TILE = 360; // pixels of an image along its longer side

function mountGrid(root, content) {
  if (content.pairs.length === 0) root.append(element("p", { textContent: content.nothing }));

  const box = element("div");
  const close = element("button", { type: "button", textContent: "close (Esc)", onclick: () => dialog.close() });
  const dialog = element("dialog", { attributes: { "aria-label": "a pair" } }, [close, box]);
  const open = (pair) => {
    box.replaceChildren();
    mountViewer(box, pair.view);
    dialog.showModal();
    box.lastChild.focus(); // so that its keys work at once
  };

  const picture = (view, number) => {
    const image = view.images[number];
    const [method] = view.methods;
    const scale = TILE / Math.max(image.width, image.height);
    const [width, height] = [Math.ceil(scale * image.width), Math.ceil(scale * image.height)];
    const canvas = element("canvas", { width, height });
    const colours = method.believed ? Object.values(view.colours)[0] : view.grey; // as in the viewer
    const look = { colours: bytesOf(colours), opacity: view.opacity, solid: view.solid };
    drawHeatmap(canvas, method.maps.factual[number], method.height, method.width, look);
    const layer = element("span", { className: "layer" }, [element("img", { src: image.source, alt: "" }), canvas]);
    const thumb = element("span", { className: "thumb" }, [layer]);
    thumb.style.aspectRatio = `${image.width} / ${image.height}`;
    const weak = element("span", { className: "weak", textContent: method.weak.factual[number] });
    return element("span", { className: "thumbed" }, [thumb, weak]);
  };

  const tiles = content.pairs.map((pair) =>
    element("button", { type: "button", className: "tile", onclick: () => open(pair) }, [
      element("span", { className: "thumbs" }, [picture(pair.view, 0), picture(pair.view, 1)]),
      element("span", { className: "caption", textContent: pair.caption }),
    ]),
  );
  root.append(element("div", { className: "tiles" }, tiles), dialog);
}
