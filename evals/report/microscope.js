"use strict";
// The page: one state, which lives in the address, and what draws it.

const MODES = ["reward", "entropy", "clipped", "kept"];
const FULL = { reward: 3, entropy: 2 };  // nats at which the colour is full
const BLANK = 0.05;  // |R| in nats below which a token stays blank
const ROW = 66;  // px, the height of a row in the list
const ENDS = { length: "truncated", turns: "out of turns", seconds: "out of time" };

const $ = (id) => document.getElementById(id);
const state = {
  group: 0, colour: "reward", sort: "all", q: "", rollout: -1, token: -1, side: 0, with: -1,
  sample: 0, pane: 0,
};
let groups = [], shown = [], drawn = {};
let jumps = -1;  // how often n was pressed on this rollout, less one

// --- small things -------------------------------------------------------------------------

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function signed(number, digits) {
  const text = Math.abs(number).toFixed(digits);
  return Number(text) === 0 ? text : (number > 0 ? "+" : "−") + text;
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const plain = (number, digits = 2) => orNone(number, digits).replace("+", "");
const orNone = (number, digits = 2) => (number === null ? "–" : signed(number, digits));
/** A token's text so that all of it is seen. */
const glyphs = (text) => (/^ *$/.test(text) ? "␣".repeat(text.length || 1)
  : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥"));
const own = () => groups[state.group];
const partner = () => (state.side && groups.length > 1 ? groups[state.with] : null);

function outcome(rollout) {
  if (rollout.reward === null) return "– no outcome";
  if (right(rollout)) return "✓ right";
  return wrong(rollout) ? "✗ wrong" : `◐ ${rollout.reward}`;
}

// --- the address --------------------------------------------------------------------------

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = (name, otherwise, below) => {
    const value = Number.parseInt(asked.get(name), 10);
    return value >= 0 && value < below ? value : otherwise;
  };
  state.group = number("group", 0, groups.length);
  state.colour = MODES.includes(asked.get("colour")) ? asked.get("colour") : "reward";
  state.sort = Object.hasOwn(SORTS, asked.get("sort") ?? "") ? asked.get("sort") : "all";
  state.q = asked.get("q") ?? "";
  state.rollout = number("rollout", -1, own() ? own().rollouts.length : 0);
  state.side = number("side", 0, 2);
  state.with = number("with", -1, groups.length);
  state.sample = number("sample", 0, Infinity);
  state.pane = number("pane", 0, 2);
  state.token = number("token", -1, Infinity);
}

function writeAddress() {
  const said = new URLSearchParams({
    group: state.group, colour: state.colour, sort: state.sort, rollout: state.rollout,
  });
  if (state.q) said.set("q", state.q);
  if (partner()) said.set("side", 1), said.set("with", state.with);
  if (partner() && state.sample) said.set("sample", state.sample);
  if (partner() && state.pane) said.set("pane", state.pane);
  if (state.token >= 0) said.set("token", state.token);
  history.replaceState(null, "", `#${said}`);
}

// --- drawing ------------------------------------------------------------------------------

/** Change some of the state and redraw what depends on it. */
function set(changes) {
  Object.assign(state, changes);
  if (changes.token === -1) jumps = -1;
  draw();
  writeAddress();
}

function draw() {
  if (state.side && (state.with < 0 || state.with === state.group)) {
    state.with = likeliestPartner(groups, state.group);
  }
  if (anew("list", [state.group, state.sort, state.q, partner() && state.with])) {
    shown = listed(own(), state.sort, state.q, partner());
    drawn.rows = null;
    $("rows").style.height = `${shown.length * ROW}px`;
    $("list").scrollTop = 0;
  }
  if (!shown.some((each) => each.i === state.rollout)) {
    const token = state.rollout < 0 ? state.token : -1;  // an address may name but the token
    Object.assign(state, { rollout: shown.length ? shown[0].i : -1, token });
  }
  drawControls();
  drawCount();
  if (anew("row", [state.rollout, drawn.list])) showRow();
  drawRows();
  const view = [state.group, state.rollout, state.colour, partner() && state.with, state.sample];
  const held = document.activeElement.closest(".tk");
  if (anew("detail", view)) drawDetail();
  if (anew("top", [state.group, state.rollout])) $("panes").scrollTop = 0;
  drawFocus();
  if (held && !held.isConnected) elementOf(state.pane, state.token)?.focus({ preventScroll: true });
}

/** Whether `values` differ from the last time under that name. */
function anew(name, values) {
  const key = JSON.stringify(values), changed = drawn[name] !== key;
  drawn[name] = key;
  return changed;
}

function drawControls() {
  $("group").value = state.group;
  $("with").value = state.with;
  $("with-label").hidden = !partner();
  $("sort").value = state.sort;
  if ($("search").value !== state.q) $("search").value = state.q;
  $("side").setAttribute("aria-pressed", String(Boolean(partner())));
  for (const button of $("modes").children) {
    button.setAttribute("aria-pressed", String(button.dataset.mode === state.colour));
  }
  document.body.classList.toggle("side", Boolean(partner()));
  if (anew("legend", [state.colour, state.group, partner() && state.with])) drawLegend();
}

function drawLegend() {
  const scale = (kind, ...ends) => make("span", { class: "scale" }, ends[0],
    make("span", { class: `ramp ${kind}`, "aria-hidden": "true" }), ends[1]);
  const floors = [...new Set([own(), partner()].filter(Boolean).map((group) => group.floor))];
  const floor = floors.map((each) => (each === null ? "no reward floor, nothing is clipped"
    : `R < ${plain(each)} nats`)).join("; beside it ");
  const sample = (text, classes, label) => make("span", { class: "tokens" },
    make("span", { class: `tk ${classes}`, "data-label": label, style: "--strength:.7" }, text));
  const kept = make("span", {}, sample("kept", "kept", ""), " learnt from");
  const clipped = make("span", {}, floors.some((each) => each !== null)
    ? sample("clipped", "clipped", "▼") : "", ` ${floor}`);
  const means = {
    reward: [scale("diverging", "−3", "+3 nats"), make("span", {},
      "R = log p(teacher) − log p(student); orange, −: the teacher likes it less; ",
      "blue, +: more")],
    entropy: [scale("sequential", "0", "2 nats or more"),
      make("span", {}, "entropy of the student's distribution there")],
    clipped: [make("span", {}, sample("filled", "clipped down", "▼"),
      " its reward is cut off at the floor")],
    kept: [make("span", {}, sample("filled", "kept seq", "●"), " in the loss"),
      make("span", {}, sample("blank", "", "○"), " left out")],
  };
  $("legend").replaceChildren(make("b", {}, `${MODES.indexOf(state.colour) + 1} ${state.colour}`),
    ...means[state.colour], kept, clipped);
}

function drawCount() {
  const all = own() ? own().rollouts.length : 0, thousands = (n) => n.toLocaleString("en-GB");
  const place = shown.findIndex((each) => each.i === state.rollout) + 1;
  const among = (shown.length === all ? "" : `${thousands(shown.length)} of `) + thousands(all);
  const where = place ? `, at ${thousands(place)}` : "";
  const shares = partner() && !shown.length && state.sort === "all" && !state.q
    ? " The two groups share no prompt." : "";
  $("count").textContent = `${among} rollouts${where}.${shares}`;
}

// --- the list: only the rows in sight exist -------------------------------------------------

function drawRows() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  if (!anew("rows", [first, last, state.rollout, drawn.list])) return;
  const rows = [];
  for (let k = first; k < last; k++) rows.push(row(shown[k], k));
  $("rows").replaceChildren(...rows);
  list.setAttribute("aria-activedescendant", $(`row-${state.rollout}`) ? `row-${state.rollout}` : "");
}

function row(rollout, k) {
  const facts = [outcome(rollout), `${rollout.said} tokens`, `mean R ${orNone(rollout.mean)}`];
  if (rollout.clipped) facts.push(`▼ ${percent(rollout.share)}`);
  const start = rollout.prompt.replace(/\s+/g, " ").slice(0, 120), strip = stripe(rollout);
  return make("div", {
    class: "row", role: "option", id: `row-${rollout.i}`, "data-rollout": rollout.i,
    "aria-selected": String(rollout.i === state.rollout), "aria-posinset": k + 1,
    "aria-setsize": shown.length, style: `transform:translateY(${k * ROW}px)`,
  }, make("span", { class: "start" }, start || "(no words)"),
  make("span", { class: "about" }, facts.join(" · ")),
  make("span", { class: "strip", "aria-hidden": "true", style: `background-image:${strip}` }));
}

/** A rollout's R from left to right, as hard-edged stops of one gradient. */
function stripe(rollout) {
  const bins = own().strip(rollout, 60);
  const stops = bins.map((R, k) => {
    const colour = `rgb(var(--${R > 0 ? "up" : "down"}) / ${strength(R, FULL.reward)})`;
    return `${colour} ${(100 * k) / bins.length}% ${(100 * (k + 1)) / bins.length}%`;
  });
  return `linear-gradient(90deg, ${stops.join(", ") || "transparent 0 100%"})`;
}

function showRow() {
  const list = $("list"), top = shown.findIndex((each) => each.i === state.rollout) * ROW;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  const over = top + ROW - list.clientHeight;
  if (over > list.scrollTop) list.scrollTop = over;
}

const strength = (value, full) => Math.min(1, Math.abs(value) / full).toFixed(2);
