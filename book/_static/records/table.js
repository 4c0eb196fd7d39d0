/* The table of the page "The records": all runs, searched, sorted, fifty a page. */
"use strict";
if (window.RECORDS) {
  const data = window.RECORDS;
  const { address } = window.CHARTS;
  const PAGE = 50;
  const ALWAYS = ["id", "criterion", "sparsity", "seed", "test_accuracy"];
  const byId = (name) => document.getElementById(`records-${name}`);
  const column = Object.fromEntries(data.columns.map(({ key }, i) => [key, i]));
  const labels = new Map(data.criteria.map(({ key, label }) => [key, label]));
  const sorted = { by: null, down: false };
  let first = 0; // place, among the rows found, of the first one on the page

  const OWN = { width: "the model's", temperature: "each criterion's", rounds: "each criterion's" };

  /** What a cell says; a failed run has no accuracy and says so in its place. */
  function content(row, key) {
    const value = row[column[key]];
    if (key === "criterion") return labels.get(value) ?? value;
    if (key === "test_accuracy") return value === null ? "failed" : (100 * value).toFixed(2);
    if (key === "when") return value === "init" ? "initialization" : "after training";
    if (key === "failure" || value !== null) return String(value ?? "");
    return key in OWN ? "its own" : "";
  }

  /** Criteria as everywhere in the book, the rest by size or by the alphabet. */
  const usual = ["dataset", "model", "criterion", "sparsity", "warmup", "seed"];
  const places = new Map(data.criteria.map(({ key }, place) => [key, place]));

  function asUsual(a, b) {
    const rank = ({ row }, key) => (key === "criterion" ? places.get(row[column[key]]) : row[column[key]]);
    for (const key of usual) {
      const [left, right] = [rank(a, key), rank(b, key)];
      if (left !== right) return left < right ? -1 : 1;
    }
    return 0;
  }

  /** A run with the words of its cells, which a search looks in. */
  function searchable(row, index) {
    const words = data.columns.map(({ key }) => content(row, key).toLowerCase());
    return { index, row, text: [...words, row[column.criterion]].join(" ") };
  }

  /** The column of a name: its key, or its heading without spaces, signs and what stands in brackets. */
  const plain = (name) => name.toLowerCase().replace(/\(.*\)|[^a-z]/g, "");
  const named = new Map(data.columns.flatMap(({ key, label }) => [[plain(key), key], [plain(label), key]]));

  const COMPARISONS = {
    "=": (a, b) => a === b, "!=": (a, b) => a !== b,
    "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  };

  /** What a word of the search asks of a run: its text, or seed=3, accuracy>60, sparsity>=0.98. */
  function asked(word) {
    const [, name, sign, wanted] = word.match(/^([^<>=!]+)(!=|<=|>=|=|<|>)(.+)$/) ?? [];
    if (!sign) return ({ text }) => text.includes(word);
    const key = named.get(plain(name));
    if (!key) return null;
    const compare = COMPARISONS[sign];
    return ({ row }) => {
      const value = row[column[key]];
      const number = key === "test_accuracy" ? value * 100 : value;
      if (typeof value === "number" && !Number.isNaN(Number(wanted))) return compare(number, Number(wanted));
      const said = [content(row, key), String(value)].map((text) => text.toLowerCase());
      return sign === "!=" ? !said.includes(wanted) : sign === "=" && said.includes(wanted);
    };
  }

  const rows = data.rows.map(searchable).sort(asUsual);

  const searched = () => byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);

  function fittingRows() {
    const drawn = byId("follow").checked ? data.shown ?? new Set() : null;
    const questions = searched().map(asked);
    const fits = (run) => (!drawn || drawn.has(run.index)) && questions.every((fit) => fit?.(run));
    const fitting = rows.filter(fits);
    if (sorted.by !== null) fitting.sort(compare);
    return fitting;
  }

  /** The columns that tell the rows apart, and in words what all of them share. */
  function split(fitting) {
    const shared = [];
    if (byId("wide").checked || fitting.length === 0) return { columns: data.columns, shared };
    const columns = data.columns.filter(({ key, label }) => {
      const values = new Set(fitting.map(({ row }) => row[column[key]]));
      if (ALWAYS.includes(key) || values.size > 1 || sorted.by === key) return true;
      const said = fitting[0].row[column[key]] === null && OWN[key] ? `(${OWN[key]} own)` : content(fitting[0].row, key);
      if (said) shared.push(`${label} ${said}`);
      return false;
    });
    return { columns, shared };
  }

  /** Numbers by size, words by the alphabet, what is absent last in both directions. */
  function compare(a, b) {
    const value = ({ row }) => (sorted.by === "criterion" ? content(row, "criterion") : row[column[sorted.by]]);
    const [left, right] = [value(a), value(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    const way = typeof left === "number" ? left - right : String(left).localeCompare(String(right));
    return sorted.down ? -way : way;
  }

  function cell(row, key) {
    const element = document.createElement("td");
    const text = content(row, key);
    if (key === "id") {
      const link = document.createElement("a");
      const folder = [row[column.dataset], row[column.model]].map(encodeURIComponent).join("/");
      Object.assign(link, { href: `../_static/records-data/${folder}/${text}.json`, textContent: text });
      element.append(link);
      return element;
    }
    element.textContent = text;
    if (typeof row[column[key]] === "number") element.className = "records-number";
    if (key === "test_accuracy" && row[column[key]] === null) element.className = "records-failed";
    if (key === "failure" && text) element.className = "records-long";
    return element;
  }

  function render() {
    const fitting = fittingRows();
    first = Math.min(first, Math.max(0, PAGE * Math.floor((fitting.length - 1) / PAGE)));
    const page = fitting.slice(first, first + PAGE);
    const { columns, shared } = split(fitting);
    heads(columns);
    byId("runs").tBodies[0].replaceChildren(
      ...page.map(({ row }) => {
        const line = document.createElement("tr");
        line.append(...columns.map(({ key }) => cell(row, key)));
        return line;
      }),
    );
    const failed = fitting.filter(({ row }) => row[column.failure] !== null).length;
    const range = page.length ? `; rows ${first + 1} to ${first + page.length} are below` : "";
    const unknown = searched().filter((word) => asked(word) === null);
    byId("count").textContent =
      `${fitting.length} of ${rows.length} runs, ${failed} of them failed${range}.` +
      (unknown.length ? ` No column is called as in ${unknown.join(", ")}.` : "");
    byId("shared").textContent = shared.length ? `Same in every row: ${shared.join("; ")}.` : "";
    byId("previous").disabled = first === 0;
    byId("next").disabled = first + PAGE >= fitting.length;
  }

  function turn(pages) {
    first = Math.max(0, first + pages * PAGE);
    render();
  }

  function sortBy(key) {
    sorted.down = sorted.by === key && !sorted.down;
    sorted.by = key;
    first = 0;
    toAddress();
    render();
  }

  /** The head, anew when other columns are shown; the focus stays on its button. */
  function heads(columns) {
    const row = byId("runs").tHead.rows[0] ?? byId("runs").tHead.insertRow();
    const keys = columns.map(({ key }) => key).join();
    if (row.dataset.keys !== keys) {
      const focused = row.contains(document.activeElement) && document.activeElement.parentElement.dataset.key;
      row.dataset.keys = keys;
      row.replaceChildren(...columns.map(head));
      if (focused) row.querySelector(`[data-key="${focused}"] button`)?.focus();
    }
    for (const element of row.cells) {
      if (element.dataset.key === sorted.by) element.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else element.removeAttribute("aria-sort");
    }
  }

  function head({ key, label }) {
    const element = document.createElement("th");
    element.scope = "col";
    element.dataset.key = key;
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: label });
    button.addEventListener("click", () => sortBy(key));
    element.append(button);
    return element;
  }

  /* --- the address */

  function toAddress() {
    const sort = sorted.by && (sorted.down ? `-${sorted.by}` : sorted.by);
    address.write({ search: byId("search").value.trim(), follow: byId("follow").checked ? 1 : "", sort });
  }

  function fromAddress() {
    const said = address.read();
    byId("search").value = said.search ?? "";
    byId("follow").checked = said.follow === "1";
    const by = said.sort?.replace(/^-/, "");
    sorted.by = by in column ? by : null;
    sorted.down = said.sort?.startsWith("-") ?? false;
    turn(-Infinity);
  }

  for (const [name, event] of [["search", "input"], ["follow", "change"]]) {
    byId(name).addEventListener(event, () => {
      toAddress();
      turn(-Infinity);
    });
  }
  byId("wide").addEventListener("change", render);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  document.addEventListener("records:shown", () => {
    if (byId("follow").checked) turn(-Infinity);
  });
  for (const sentence of data.unreadable) {
    const item = document.createElement("li");
    item.textContent = sentence;
    byId("unreadable").append(item);
  }
  byId("table").hidden = false;
  address.watch(fromAddress);
  fromAddress();
}
