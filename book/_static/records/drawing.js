/* Accuracy against sparsity as an SVG element, for the page "The records".
   window.RECORDS is made by book/_ext/records_page.py; its numbers are drawn as they are. */
"use strict";
if (window.RECORDS) {
  const data = window.RECORDS;
  const { INK, svg, text, percent, ticks, marker, ring } = window.CHARTS;
  const styles = new Map(data.criteria.map((criterion) => [criterion.key, criterion]));
  const order = data.criteria.map((criterion) => criterion.key);
  function inWords(point) {
    const spread = point.sd === null ? "" : `, standard deviation ${percent(point.sd)}`;
    const where = point.criterion === "dense" ? "" : `, sparsity ${point.sparsity}`;
    return (
      `${styles.get(point.criterion).label}${where}: mean ${percent(point.mean)} %${spread}, n = ${point.n} ` +
      `(${point.n === 1 ? "seed" : "seeds"} ${point.seeds.join(", ")})`
    );
  }

  const sample = (key, x, y) => window.CHARTS.sample(styles.get(key), x, y, key === "dense" && "5 3");

  /** A text as lines of at most so many letters. */
  function lines(words, letters) {
    const found = [""];
    for (const word of words.split(" ")) {
      if (`${found.at(-1)} ${word}`.length > letters) found.push(word);
      else found.push(`${found.pop()} ${word}`.trim());
    }
    return found;
  }

  /** Sizes and scales of a figure, in pixels. */
  function layout(points, width, title) {
    const keys = order.filter((key) => points.some((point) => point.criterion === key));
    const sparsities = [...new Set(points.map((point) => point.sparsity))].filter((s) => s > 0).sort((a, b) => a - b);
    const height = Math.round(Math.min(430, Math.max(280, 0.6 * width)));
    const box = { left: 52, right: width - 14, top: 14, bottom: height - 48 };
    const [low, high] = range(points);
    const slot = (box.right - box.left) / Math.max(1, sparsities.length);
    const x = (sparsity, nudge) => box.left + slot * (sparsities.indexOf(sparsity) + 0.5 + nudge);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const columns = Math.max(1, Math.floor((width - 60) / 150)); // of the legend
    const said = title ? lines(title, width / 6.5) : [];
    const below = title ? 30 + 20 * Math.ceil(keys.length / columns) + 14 * said.length : 0;
    return { points, width, keys, sparsities, height, box, low, high, x, y, columns, said, below };
  }

  /** The least and the greatest accuracy that is drawn, in percent, with a margin. */
  function range(points) {
    const ends = points.flatMap(({ mean, sd }) => [100 * (mean - (sd ?? 0)), 100 * (mean + (sd ?? 0))]);
    const [low, high] = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 100];
    const margin = 0.05 * (high - low) || 1;
    return [low - margin, high + margin];
  }

  /** The two axes with their ticks, and their words. */
  function axes({ width, height, box, low, high, x, y, sparsities }) {
    const ink = svg("g", { stroke: INK, "aria-hidden": "true" });
    const words = svg("g", { "aria-hidden": "true" });
    ink.append(svg("path", { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, fill: "none" }));
    for (const value of ticks(low, high, 6)) {
      ink.append(svg("line", { x1: box.left - 5, x2: box.left, y1: y(value), y2: y(value) }));
      words.append(text(value, { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }));
    }
    for (const sparsity of sparsities) {
      const middle = x(sparsity, 0);
      ink.append(svg("line", { x1: middle, x2: middle, y1: box.bottom, y2: box.bottom + 5 }));
      words.append(text(sparsity, { x: middle, y: box.bottom + 18, "text-anchor": "middle" }));
    }
    const [middle, half] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    const label = width < 420 ? "sparsity (fraction removed)" : "sparsity (fraction of prunable weights removed)";
    words.append(
      text(label, { x: middle, y: height - 10, "text-anchor": "middle" }),
      text("test accuracy (%)", { transform: `translate(14 ${half}) rotate(-90)`, "text-anchor": "middle" }),
    );
    return [ink, words];
  }

  /** The line across of the network that is not pruned. */
  function denseLine(point, { box, y }, mark) {
    const height = y(100 * point.mean);
    const line = { x1: box.left, x2: box.right, y1: height, y2: height };
    const parts = [
      svg("line", { ...line, stroke: INK, "stroke-dasharray": "6 4" }),
      svg("line", { ...line, class: "records-ring" }),
    ];
    return mark(point, parts, [null, height]);
  }

  /** A criterion's line, and a mark with its bar at each sparsity. */
  function curve(points, nudge, { x, y }, mark) {
    const { color } = styles.get(points[0].criterion);
    const places = points.map((point) => [x(point.sparsity, nudge), y(100 * point.mean)]);
    const line = places.map((place) => place.join()).join(" ");
    const marks = points.map((point, i) => mark(point, markParts(point, places[i], y), places[i]));
    return [svg("polyline", { points: line, fill: "none", stroke: color, "stroke-width": 1.8 }), ...marks];
  }

  /** What a mark is made of: a bar of one standard deviation to each side, the marker, the ring of the focus. */
  function markParts(point, [px, py], y) {
    const look = styles.get(point.criterion);
    const parts = [marker(look, px, py), ring(px, py)];
    if (point.sd === null) return parts;
    const [top, bottom] = [point.mean + point.sd, point.mean - point.sd].map((mean) => y(100 * mean));
    const bar = `M${px - 3} ${top}H${px + 3}M${px} ${top}V${bottom}M${px - 3} ${bottom}H${px + 3}`;
    return [svg("path", { d: bar, stroke: look.color, "stroke-width": 1.4, fill: "none" }), ...parts];
  }

  /** Below the figure: the names of its curves, and its runs in words. */
  function legend({ points, keys, columns, height, below, said }) {
    const names = keys.flatMap((key, i) => {
      const [left, top] = [60 + 150 * (i % columns), height + 10 + 20 * Math.floor(i / columns)];
      const counts = points.filter((point) => point.criterion === key).map((point) => point.n);
      const name = `${styles.get(key).label} (n = ${Math.min(...counts)})`;
      return [...sample(key, left, top), text(name, { x: left + 20, y: top + 4 })];
    });
    const last = height + below - 8;
    const place = (i) => ({ x: 8, y: last - 14 * (said.length - 1 - i), "font-size": 11 });
    return [...names, ...said.map((line, i) => text(line, place(i)))];
  }

  /** The figure as an SVG element.
      points: what is drawn; width: in pixels; mark(point, parts, [x, y]): makes one element of a point's parts,
      x being null for a line across;
      title: if given, the figure names its curves and its runs, and can stand alone. */
  function draw(points, width, mark, title) {
    const plan = layout(points, width, title);
    const whole = plan.height + plan.below;
    const names = plan.keys.map((key) => styles.get(key).label).join(", ");
    const root = svg("svg", {
      xmlns: "http://www.w3.org/2000/svg", width, height: whole, viewBox: `0 0 ${width} ${whole}`,
      role: "group", "aria-label": `Accuracy against sparsity: ${names}`, "font-family": "sans-serif",
      ...(title ? { color: "#333333" } : {}), // a file has no page to take its ink from
    });
    root.append(...axes(plan));
    plan.keys.forEach((key, i) => {
      const curvePoints = points.filter((point) => point.criterion === key).sort((a, b) => a.sparsity - b.sparsity);
      const nudge = (i - plan.keys.length / 2) * 0.025; // so that bars of equal criteria do not cover each other
      if (key === "dense") root.append(denseLine(curvePoints[0], plan, mark));
      else root.append(...curve(curvePoints, nudge, plan, mark));
    });
    if (title) {
      root.prepend(svg("title", {}, title), svg("rect", { width, height: whole, fill: "white" }));
      root.append(...legend(plan));
    }
    return root;
  }

  data.drawing = { order, styles, inWords, sample, draw };
}
