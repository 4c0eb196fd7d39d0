/* Fraction kept of each layer, from input to output, as an SVG element: for the page "The masks". */
"use strict";
window.PROFILES = (() => {
  const { INK, svg, text, marker, ring } = window.CHARTS;
  const HEIGHT = 330;

  /** A fraction as a percentage with three digits. */
  const share = (part) => `${Number((100 * part).toPrecision(3))} %`;

  /** A power of ten as a percentage that stays short. */
  const tick = (power) => {
    const raised = String(power + 2).replace(/./g, (sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻");
    return power < -4 ? `10${raised} %` : share(10 ** power);
  };

  /** A layer by its place, as the axis has it, and by its name. */
  const layerName = (layers, layer) => `layer ${layer + 1} (${layers[layer].replace(".weight", "")})`;

  function axes(box, y, layers, lowest, width) {
    const group = svg("g", { stroke: INK, "aria-hidden": "true" });
    const words = svg("g", { "aria-hidden": "true" });
    group.append(svg("path", { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, fill: "none" }));
    for (let power = lowest; power <= 0; power++) {
      const height = y(10 ** power);
      group.append(
        svg("line", { x1: box.left - 5, x2: box.left, y1: height, y2: height }),
        svg("line", { x1: box.left, x2: box.right, y1: height, y2: height, "stroke-opacity": 0.15 }),
      );
      words.append(text(tick(power), { x: box.left - 8, y: height + 4, "text-anchor": "end" }));
    }
    words.append(text("empty", { x: box.left - 8, y: y(0) + 4, "text-anchor": "end" }));
    const every = Math.ceil(layers / (width / 34));
    for (let layer = 0; layer < layers; layer += every) {
      const place = box.x(layer);
      group.append(svg("line", { x1: place, x2: place, y1: box.bottom, y2: box.bottom + 5 }));
      words.append(text(layer + 1, { x: place, y: box.bottom + 18, "text-anchor": "middle" }));
    }
    const [middle, half] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    words.append(
      text("layer, from input to output", { x: middle, y: HEIGHT - 8, "text-anchor": "middle" }),
      text("fraction kept", { transform: `translate(13 ${half}) rotate(-90)`, "text-anchor": "middle" }),
    );
    return [group, words];
  }

  /** The lines between neighbouring layers that keep something. */
  function line(curve, x, y) {
    let d = "";
    curve.values.forEach((value, layer) => {
      if (value > 0) d += `${curve.values[layer - 1] > 0 ? "L" : "M"}${x(layer)} ${y(value)}`;
    });
    const dashes = curve.dashes ? { "stroke-dasharray": curve.dashes } : {};
    return svg("path", { d, fill: "none", stroke: curve.look.color, "stroke-width": 1.6, "stroke-opacity": 0.7, ...dashes });
  }

  const cross = (x, y, color) =>
    svg("path", { d: `M${x - 5} ${y - 5}L${x + 5} ${y + 5}M${x + 5} ${y - 5}L${x - 5} ${y + 5}`, stroke: color, "stroke-width": 2.4 });

  /** options: curves, each with look (color, marker), values by layer, dashes of its line, or none, and items, what
      mark is told of by layer; density of all layers together; floor, the least fraction that the axis has;
      words, the figure's description; mark(item, parts, [x, y]). */
  function draw({ curves, density, floor, width, words, mark }) {
    const layers = curves[0].values.length;
    const lowest = Math.floor(Math.log10(floor));
    const box = { left: 72, right: width - 10, top: 12, bottom: HEIGHT - 46 };
    const slot = (box.right - box.left) / layers;
    box.x = (layer) => box.left + slot * (layer + 0.5);
    const span = box.bottom - 26 - box.top;
    const y = (value) => (value > 0 ? box.top + (Math.max(Math.log10(value), lowest) / lowest) * span : box.bottom - 10);
    const root = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": words });
    root.append(...axes(box, y, layers, lowest, width));
    const height = y(density);
    root.append(
      svg("line", { x1: box.left, x2: box.right, y1: height, y2: height, stroke: INK, "stroke-dasharray": "2 3", "stroke-opacity": 0.6 }),
    );
    curves.forEach((curve, i) => {
      const nudge = curves.length > 1 ? (i - 0.5) * Math.min(8, slot / 3) : 0;
      const x = (layer) => box.x(layer) + nudge;
      root.append(line(curve, x, y));
      curve.values.forEach((value, layer) => {
        const [px, py] = [x(layer), y(value)];
        const sign = value > 0 ? marker(curve.look, px, py) : cross(px, py, curve.look.color);
        root.append(mark(curve.items[layer], [sign, ring(px, py)], [px, py]));
      });
    });
    return root;
  }

  return { draw, share, layerName };
})();
