// Shows what a mark of a plot or a box of an image is, while the pointer, a finger or the keyboard is on it.
(() => {
  "use strict";
  const tip = document.getElementById("tip");
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x - box.width / 2), document.documentElement.clientWidth - box.width - 8);
    const above = y - box.height - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : y + 18}px`;
  };
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    place(box.left + box.width / 2, box.top);
  };
  const hide = () => { tip.hidden = true; };
  const marked = (event) => event.target instanceof Element ? event.target.closest("[data-tip]") : null;
  for (const kind of ["pointerover", "focusin", "click"]) {
    document.addEventListener(kind, (event) => {
      const target = marked(event);
      if (target) show(target); else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
