"use strict";
// What the hands do: pointer, keys, fields; and the start.

function moveRollout(by) {
  const place = shown.findIndex((each) => each.i === state.rollout) + by;
  if (place < 0 || place >= shown.length) return;
  set({ rollout: shown[place].i, token: -1, sample: 0 });
  $("list").focus({ preventScroll: true });
}

function moveToken(by) {
  const elements = [...(boxOf(state.pane)?.querySelectorAll(".tk") ?? [])];
  const places = elements.map((each) => Number(each.dataset.k));
  if (!places.length) return;
  const at = places.indexOf(state.token), end = by > 0 ? 0 : places.length - 1;
  const to = at < 0 ? end : Math.min(places.length - 1, Math.max(0, at + by));
  jumps = -1;
  lookAt(state.pane, places[to]);
}

/** The lowest R first; after the last the first again. */
function nextWorst(side) {
  const view = views()[side];
  const places = view?.rollout ? view.group.worstFirst(view.rollout) : [];
  if (!places.length) return;
  jumps = side === state.pane ? (jumps + 1) % places.length : 0;
  lookAt(side, places[jumps] - view.rollout.start);
}

function lookAt(side, k) {
  set({ pane: side, token: k });
  const element = elementOf(side, k);
  element.focus({ preventScroll: true });
  element.scrollIntoView({ block: "nearest" });
}

function toggleSide() {
  if (groups.length < 2) return;
  set({ side: state.side ? 0 : 1, token: -1, pane: 0, sample: 0 });
}

/** The other side's token at the same place, or its first. */
function otherSide() {
  const side = 1 - state.pane, k = elementOf(side, state.token) ? state.token : 0;
  if (elementOf(side, k)) lookAt(side, k);
}

const KEYS = {
  j: () => moveRollout(1), ArrowDown: () => moveRollout(1),
  k: () => moveRollout(-1), ArrowUp: () => moveRollout(-1),
  ArrowRight: () => moveToken(1), ArrowLeft: () => moveToken(-1),
  n: () => nextWorst(state.pane), s: toggleSide, o: otherSide,
  "/": () => $("search").focus(),
  "?": () => $("help").showModal(),
};
MODES.forEach((mode, k) => { KEYS[k + 1] = () => set({ colour: mode }); });

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("help").open) {
    if (event.key === "?") $("help").close();
    return;
  }
  const field = event.target.closest?.("input, select, textarea");
  if (field && event.key === "Escape") field.blur();
  if (field || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
}

function onPanes() {
  const at = (event) => {
    const element = event.target.closest(".tk");
    return element && [Number(element.closest(".tokens").dataset.side), Number(element.dataset.k)];
  };
  $("panes").addEventListener("pointerover", (event) => {
    const found = at(event);
    if (found) drawCard(views()[found[0]], found[1]);
    else drawFocus();
  });
  $("panes").addEventListener("pointerleave", drawFocus);
  $("panes").addEventListener("click", (event) => {
    const found = at(event);
    if (found) jumps = -1, lookAt(...found);
  });
  $("panes").addEventListener("focusin", (event) => {
    const found = at(event);
    if (found && (found[0] !== state.pane || found[1] !== state.token)) {
      set({ pane: found[0], token: found[1] });
    }
  });
}

function onControls() {
  const fresh = { token: -1, pane: 0, sample: 0 };
  const number = (id) => $(id).addEventListener("change", (event) => {
    const other = id === "group" ? { rollout: -1, with: -1 } : {};
    set({ ...fresh, ...other, [id]: Number(event.target.value) });
  });
  ["group", "with"].forEach(number);
  $("sort").addEventListener("change", (event) => (
    set({ ...fresh, sort: event.target.value, rollout: -1 })));
  $("search").addEventListener("input", (event) => set({ ...fresh, q: event.target.value }));
  $("side").addEventListener("click", toggleSide);
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("modes").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) set({ colour: button.dataset.mode });
  });
  $("list").addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) set({ ...fresh, rollout: Number(row.dataset.rollout) });
  });
}

function fillControls() {
  const choice = ({ label }, value) => make("option", { value }, label);
  $("group").append(...groups.map(choice));
  $("with").append(...groups.map(choice));
  $("sort").append(...Object.entries(SORTS).map(([key, { name }]) => choice({ label: name }, key)));
  $("modes").append(...MODES.map((mode, k) => make("button", { type: "button", "data-mode": mode },
    make("kbd", {}, String(k + 1)), ` ${mode}`)));
  $("side").disabled = groups.length < 2;
}

async function start() {
  try {
    groups = await unpack(JSON.parse($("data").textContent));
  } catch (error) {
    $("count").textContent = "This browser cannot unpack the data: Chrome 80, Firefox 113 or "
      + `Safari 16.4 and newer can (${error.message}).`;
    return;
  }
  fillControls();
  if (!groups.length) {
    $("count").textContent = "No rollouts.";
    return;
  }
  onControls();
  onPanes();
  document.addEventListener("keydown", onKey);
  addEventListener("resize", () => { drawRows(); });
  addEventListener("hashchange", () => {
    jumps = -1;
    readAddress();
    draw();
  });
  readAddress();
  draw();
  elementOf(state.pane, state.token)?.scrollIntoView({ block: "nearest" });
}

start();
