/* Accuracy against sparsity as an SVG element, for the page "The records".
   window.RECORDS is made by book/_ext/records_page.py; its numbers are drawn as they are. */
"use strict";
(() => {
  const data = window.RECORDS;
  if (!data) return;
  const styles = new Map(data.criteria.map((criterion) => [criterion.key, criterion]));
  const order = data.criteria.map((criterion) => criterion.key);
  const INK = "#333333";
  const MARKER = 8; // pixels

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const percent = (fraction) => (100 * fraction).toFixed(2);

  function inWords(point) {
    const spread = point.sd === null ? "" : `, standard deviation ${percent(point.sd)}`;
    const where = point.criterion === "dense" ? "" : `, sparsity ${point.sparsity}`;
    return (
      `${styles.get(point.criterion).label}${where}: mean ${percent(point.mean)} %${spread}, n = ${point.n} ` +
      `(${point.n === 1 ? "seed" : "seeds"} ${point.seeds.join(", ")})`
    );
  }

  const warmupInWords = (updates) => (updates ? `with (${updates} updates)` : "without");

  /** A piece of line with its marker, for legends. */
  function sample(key, x, y) {
    const { color, marker } = styles.get(key);
    const line = { x1: x - 13, x2: x + 13, y1: y, y2: y, stroke: color, "stroke-width": 1.8 };
    if (key === "dense") return [svg("line", { ...line, "stroke-dasharray": "5 3" })];
    const place = `translate(${x} ${y}) scale(${MARKER})`;
    return [svg("line", line), svg("path", { d: marker, fill: color, transform: place })];
  }

  /** About `count` round numbers that cover the range. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }

  /** A text as lines of at most so many letters. */
  function lines(words, letters) {
    const found = [""];
    for (const word of words.split(" ")) {
      if (`${found.at(-1)} ${word}`.length > letters) found.push(word);
      else found.push(`${found.pop()} ${word}`.trim());
    }
    return found;
  }

  /** The figure as an SVG element.
      points: what is drawn; width: in pixels; mark(point, parts, [x, y]): makes one element of a point's parts,
      x being null for a line across;
      title: if given, the figure names its curves and its runs, and can stand alone. */
  function draw(points, width, mark, title) {
    const keys = order.filter((key) => points.some((point) => point.criterion === key));
    const sparsities = [...new Set(points.map((point) => point.sparsity))].filter((s) => s > 0).sort((a, b) => a - b);
    const columns = Math.max(1, Math.floor((width - 60) / 150));
    const said = title ? lines(title, width / 6.5) : [];
    const below = title ? 30 + 20 * Math.ceil(keys.length / columns) + 14 * said.length : 0;
    const height = Math.round(Math.min(430, Math.max(280, 0.6 * width)));
    const box = { left: 52, right: width - 14, top: 14, bottom: height - 48 };
    const ends = points.flatMap(({ mean, sd }) => [100 * (mean - (sd ?? 0)), 100 * (mean + (sd ?? 0))]);
    let [low, high] = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 100];
    const margin = 0.05 * (high - low) || 1;
    [low, high] = [low - margin, high + margin];
    const slot = (box.right - box.left) / Math.max(1, sparsities.length);
    const x = (sparsity, nudge) => box.left + slot * (sparsities.indexOf(sparsity) + 0.5 + nudge);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const text = (content, attributes) => svg("text", { fill: INK, "font-size": 12, ...attributes }, content);

    const name = `Accuracy against sparsity: ${keys.map((key) => styles.get(key).label).join(", ")}`;
    const root = svg("svg", {
      xmlns: "http://www.w3.org/2000/svg", width, height: height + below, viewBox: `0 0 ${width} ${height + below}`,
      role: "group", "aria-label": name, "font-family": "sans-serif",
    });
    const axes = svg("g", { stroke: INK, "aria-hidden": "true" });
    axes.append(svg("path", { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, fill: "none" }));
    const words = svg("g", { "aria-hidden": "true" });
    for (const value of ticks(low, high, 6)) {
      axes.append(svg("line", { x1: box.left - 5, x2: box.left, y1: y(value), y2: y(value) }));
      words.append(text(value, { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }));
    }
    for (const sparsity of sparsities) {
      axes.append(svg("line", { x1: x(sparsity, 0), x2: x(sparsity, 0), y1: box.bottom, y2: box.bottom + 5 }));
      words.append(text(sparsity, { x: x(sparsity, 0), y: box.bottom + 18, "text-anchor": "middle" }));
    }
    const [middle, half] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    const label = width < 420 ? "sparsity (fraction removed)" : "sparsity (fraction of prunable weights removed)";
    words.append(
      text(label, { x: middle, y: height - 10, "text-anchor": "middle" }),
      text("test accuracy (%)", { transform: `translate(14 ${half}) rotate(-90)`, "text-anchor": "middle" }),
    );
    root.append(axes, words);

    keys.forEach((key, i) => {
      const { color, marker } = styles.get(key);
      const curve = points.filter((point) => point.criterion === key).sort((a, b) => a.sparsity - b.sparsity);
      if (key === "dense") {
        root.append(dense(curve[0]));
        return;
      }
      const nudge = (i - keys.length / 2) * 0.025; // so that bars of equal criteria do not cover each other
      const at = curve.map((point) => [x(point.sparsity, nudge), y(100 * point.mean)]);
      const line = { points: at.map((pair) => pair.join()).join(" "), fill: "none", stroke: color, "stroke-width": 1.8 };
      root.append(svg("polyline", line));
      curve.forEach((point, j) => {
        const [px, py] = at[j];
        const [top, bottom] = [1, -1].map((side) => y(100 * (point.mean + side * (point.sd ?? 0))));
        const bar = `M${px - 3} ${top}H${px + 3}M${px} ${top}V${bottom}M${px - 3} ${bottom}H${px + 3}`;
        root.append(mark(point, [
          ...(point.sd === null ? [] : [svg("path", { d: bar, stroke: color, "stroke-width": 1.4, fill: "none" })]),
          svg("path", { d: marker, fill: color, transform: `translate(${px} ${py}) scale(${MARKER})` }),
          svg("circle", { class: "records-ring", cx: px, cy: py, r: 8, fill: "none" }),
        ], at[j]));
      });
    });

    function dense(point) {
      const line = { x1: box.left, x2: box.right, y1: y(100 * point.mean), y2: y(100 * point.mean) };
      return mark(point, [
        svg("line", { ...line, stroke: styles.get("dense").color, "stroke-dasharray": "6 4" }),
        svg("line", { ...line, class: "records-ring" }),
      ], [null, line.y1]);
    }

    if (title) {
      keys.forEach((key, i) => {
        const [left, top] = [60 + 150 * (i % columns), height + 10 + 20 * Math.floor(i / columns)];
        const counts = points.filter((point) => point.criterion === key).map((point) => point.n);
        root.append(...sample(key, left, top));
        root.append(text(`${styles.get(key).label} (n = ${Math.min(...counts)})`, { x: left + 20, y: top + 4 }));
      });
      root.prepend(svg("title", {}, title), svg("rect", { width, height: height + below, fill: "white" }));
      const last = height + below - 8;
      said.forEach((line, i) => root.append(text(line, { x: 8, y: last - 14 * (said.length - 1 - i), "font-size": 11 })));
    }
    return root;
  }

  data.drawing = { order, styles, svg, percent, inWords, warmupInWords, sample, draw };
})();
