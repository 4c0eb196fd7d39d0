/* A figure enlarges on a click, a tap or by its button: at its full size, to be moved about in.
   What is wider than a phone is reached by the keys, as tables are. */
"use strict";
(() => {
  const PICTURES = ".bd-article .cell_output img, .bd-article figure img, .bd-article figure svg";
  const STEPS = [0.5, 0.75, 1, 1.5, 2, 3];
  let dialog = null;
  let [step, base] = [2, 0]; // the size: STEPS[step] times so many pixels

  function button(words, className, pressed) {
    const element = Object.assign(document.createElement("button"), { type: "button", className, textContent: words });
    element.addEventListener("click", pressed);
    return element;
  }

  function resize(by) {
    step = Math.max(0, Math.min(STEPS.length - 1, step + by));
    const picture = dialog.querySelector(".enlarged").firstElementChild;
    picture.style.width = `${base * STEPS[step]}px`;
  }

  function build() {
    dialog = Object.assign(document.createElement("dialog"), { className: "enlarge-dialog" });
    const bar = Object.assign(document.createElement("div"), { className: "enlarge-bar" });
    const smaller = button("−", "", () => resize(-1));
    const larger = button("+", "", () => resize(1));
    smaller.setAttribute("aria-label", "Smaller");
    larger.setAttribute("aria-label", "Larger");
    bar.append(smaller, larger, button("Close", "", () => dialog.close()));
    const place = Object.assign(document.createElement("div"), { className: "enlarged", tabIndex: 0 });
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", "The figure; arrow keys move it");
    dialog.append(bar, place);
    dialog.setAttribute("aria-label", "Enlarged figure");
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
    drag(place);
    document.body.append(dialog);
  }

  /** The mouse moves the figure; fingers and keys do by themselves. */
  function drag(place) {
    let from = null;
    place.addEventListener("pointerdown", ({ pointerType, clientX, clientY }) => {
      if (pointerType === "mouse") from = [clientX + place.scrollLeft, clientY + place.scrollTop];
    });
    place.addEventListener("pointermove", ({ clientX, clientY }) => {
      if (from) place.scrollTo(from[0] - clientX, from[1] - clientY);
    });
    for (const name of ["pointerup", "pointerleave"]) place.addEventListener(name, () => (from = null));
  }

  function enlarge(holder) {
    if (!dialog) build();
    const shown = [...holder.querySelectorAll("img, svg")].find((each) => each.getClientRects().length);
    const copy = shown.cloneNode(true);
    copy.removeAttribute("loading");
    copy.removeAttribute("id");
    copy.draggable = false;
    const natural = shown.naturalWidth || shown.viewBox?.baseVal.width * 1.6;
    [step, base] = [2, Math.max(natural, shown.clientWidth)];
    dialog.querySelector(".enlarged").replaceChildren(copy);
    dialog.showModal();
    resize(0);
    dialog.querySelector(".enlarged").focus(); // and Escape gives the focus back
  }

  function offer(picture) {
    const holder = picture.closest("figure, .cell_output") ?? picture.parentElement;
    if (holder.querySelector(":scope > .enlarge") || picture.closest(".records")) return;
    const opener = button("Enlarge", "enlarge", () => enlarge(holder));
    const caption = holder.querySelector(".caption-number")?.textContent.trim();
    opener.setAttribute("aria-label", caption ? `Enlarge ${caption}` : "Enlarge the figure");
    opener.setAttribute("aria-haspopup", "dialog");
    holder.append(opener);
    holder.classList.add("can-enlarge");
    for (const each of holder.querySelectorAll("img, svg")) {
      each.addEventListener("click", () => {
        opener.focus({ preventScroll: true });
        enlarge(holder);
      });
    }
  }

  /** The keys reach what scrolls. */
  function stops() {
    for (const place of document.querySelectorAll(".bd-article :is(figure .picture, div.math mjx-container, .rooms)")) {
      if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
  }

  document.querySelectorAll(PICTURES).forEach(offer);
  stops();
  addEventListener("resize", stops);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(stops)); // formulas are set
})();
