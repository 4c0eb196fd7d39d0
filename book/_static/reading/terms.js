/* The criteria's short names in the text: hover, focus or tap shows what one stands for.
   window.TERMS is made by book/_ext/terms.py from the library's registry. */
"use strict";
(() => {
  const here = document.currentScript.src.replace(/_static\/reading\/terms\.js.*/, "");
  const known = new Map((window.TERMS ?? []).filter((term) => term.short).map((term) => [term.label, term]));
  const names = [...known.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}_/.-])(?:${names.join("|")})(?![\\p{L}\\p{N}_/])`, "gu");
  const BLOCKS = "p, li, dd, blockquote, figcaption, summary, td, th, div, section, article";
  // Where a name stays as it is: what is no prose, what can be pressed, and the entries of the glossary itself.
  const OUT =
    "pre, code, h1, h2, h3, h4, h5, h6, figure, table, a, button, label, summary, select, nav, dt, svg, script, style, " +
    ".math, mjx-container, .records, #criteria .glossary, .citation, .term-card, .headerlink, .admonition-title";

  /** Make the first mention of each name in a block a button. */
  function mark(article) {
    const seen = new WeakMap();
    const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (!node.data.trim() || node.parentElement.closest(OUT)) continue;
      const block = node.parentElement.closest(BLOCKS);
      if (!seen.has(block)) seen.set(block, new Set());
      for (const match of node.data.matchAll(pattern)) {
        if (seen.get(block).has(match[0])) continue;
        seen.get(block).add(match[0]);
        found.push([node, match.index, match[0]]);
      }
    }
    for (const [node, start, name] of found.reverse()) { // from behind: places before stay what they are
      const range = document.createRange();
      range.setStart(node, start);
      range.setEnd(node, start + name.length);
      const button = Object.assign(document.createElement("button"), { type: "button", className: "term" });
      button.setAttribute("aria-expanded", "false");
      range.surroundContents(button);
      hold(button);
    }
  }

  /** Keep a button on one line with what touches it: lines may break beside a button, before a comma, too. */
  function hold(button) {
    const [before, after] = [button.previousSibling, button.nextSibling];
    const left = before.data.length - before.data.match(/[^\s\p{L}\p{N}]*$/u)[0].length;
    const right = after.data.match(/^\S*/)[0].length;
    if (left === before.data.length && !right) return;
    const range = document.createRange();
    range.setStart(before, left);
    range.setEnd(after, right);
    range.surroundContents(Object.assign(document.createElement("span"), { className: "term-hold" }));
  }

  /* --- the card: one at a time, right behind its button, so that Tab leads from one into the other */

  let open = null; // the button whose card is shown
  let closing = 0;
  let pinned = false; // by a tap, click or the keys: it stays when the pointer leaves

  function card({ label, name, formula, cost, id }) {
    const element = Object.assign(document.createElement("span"), { className: "term-card", id: "term-card" });
    const line = (className, html) => {
      const part = Object.assign(document.createElement("span"), { className });
      part.innerHTML = html;
      return part;
    };
    const link = Object.assign(document.createElement("a"), {
      href: `${here}book/glossary.html#term-${id}`, textContent: `${label} in the glossary`,
    });
    element.append(line("term-name", name), line("term-formula", formula), line("term-cost", `Cost: ${cost}`), link);
    return element;
  }

  function show(button) {
    clearTimeout(closing);
    if (open === button) return;
    close();
    open = button;
    const element = card(known.get(button.textContent));
    button.after(element);
    button.setAttribute("aria-expanded", "true");
    button.setAttribute("aria-describedby", element.id);
    place();
  }

  /** Put the card below its button, or above where there is more room; it goes with a button that leaves the screen. */
  function place() {
    if (!open) return;
    const element = open.nextElementSibling;
    const box = open.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) return close();
    const { width, height } = element.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + height + 8 < innerHeight || box.top < height + 8;
    element.style.left = `${left}px`;
    element.style.top = `${below ? box.bottom + 4 : box.top - height - 4}px`;
  }

  function close() {
    clearTimeout(closing);
    if (!open) return;
    open.setAttribute("aria-expanded", "false");
    open.removeAttribute("aria-describedby");
    open.nextElementSibling.remove();
    [open, pinned] = [null, false];
  }

  const within = (target) => target instanceof Element && target.closest(".term, .term-card");
  const buttonOf = (target) => target instanceof Element && target.closest(".term");

  function listen() {
    document.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "mouse") return;
      if (buttonOf(event.target)) show(buttonOf(event.target));
      else if (within(event.target)) clearTimeout(closing);
      else if (open && !pinned) {
        clearTimeout(closing);
        closing = setTimeout(close, 250);
      }
    });
    document.addEventListener("click", (event) => {
      const button = buttonOf(event.target);
      if (!button) return within(event.target) || close();
      if (open === button && pinned) return close();
      show(button);
      pinned = true;
    });
    document.addEventListener("focusin", (event) => {
      if (buttonOf(event.target)?.matches(":focus-visible")) {
        show(buttonOf(event.target));
        pinned = true;
      } else if (open && !within(event.target)) close();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !open) return;
      const button = open;
      const inside = button.nextElementSibling.contains(document.activeElement);
      close();
      if (inside) {
        button.focus();
        close(); // it was asked for
      }
    });
    document.addEventListener("scroll", place, { capture: true, passive: true });
    window.addEventListener("resize", place);
  }

  const article = document.querySelector("article.bd-article");
  if (article && names.length) {
    mark(article);
    listen();
  }
})();
