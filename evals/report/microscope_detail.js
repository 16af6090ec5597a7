"use strict";
// One rollout, or the same prompt in two groups; its tokens; the token looked at.

/** What is in sight: {group, rollout} a pane; the second has none where the prompt is missing. */
function views() {
  const first = own() && own().rollouts[state.rollout];
  if (!first) return [];
  const views = [{ group: own(), rollout: first }];
  if (partner()) {
    const same = partner().byQuestion.get(first.question) ?? [];
    const sample = same.length ? state.sample % same.length : 0;
    views.push({ group: partner(), rollout: partner().rollouts[same[sample]], same, sample });
  }
  return views;
}

function drawDetail() {
  const seen = views(), [a, b] = seen;
  const parting = b && b.rollout ? commonTokens(a.group, a.rollout, b.group, b.rollout) : null;
  $("panes").replaceChildren(...seen.map((view, side) => pane(view, side, parting)));
  if (!seen.length) $("panes").append(make("p", { class: "none" }, "No rollout to show."));
}

function pane({ group, rollout, same, sample }, side, parting) {
  const section = make("section", { class: "pane", "aria-label": group.label });
  if (!rollout) {
    section.append(make("h2", {}, group.label), make("p", {}, "No rollout of this prompt."));
    return section;
  }
  const title = make("h2", {}, group.label, " ", make("small", {}, `rollout ${rollout.i}`));
  if (same && same.length > 1) title.append(samples(same, sample));
  const alt = (k) => `Picture ${k + 1} of the prompt`;
  const pictures = rollout.pictures.map((src, k) => make("img", { src, alt: alt(k) }));
  const long = rollout.prompt.length > 600;  // it scrolls, so the keyboard must reach it
  section.append(title, make("p", { class: "ask", tabindex: long && "0" }, make("b", {}, "Prompt "),
    make("span", {}, rollout.prompt), ...pictures),
  make("ul", { class: "about" }, ...facts(group, rollout, side).map((fact) => make("li", {}, fact))));
  if (parting !== null) section.append(make("p", { class: "about" }, parted(rollout, parting)));
  section.append(tokens(group, rollout, side, parting));
  return section;
}

function facts(group, rollout, side) {
  const worst = group.worstFirst(rollout)[0];
  return [
    outcome(rollout) + (rollout.reward === null ? "" : ` (outcome ${rollout.reward})`),
    rollout.answer && `wanted ${rollout.answer}`,
    `${rollout.said} tokens`,
    ENDS[rollout.end] ?? "",
    rollout.environment && `with ${rollout.environment}`,
    `mean R ${orNone(rollout.mean)}, sum ${orNone(rollout.sum, 1)} nats`,
    worst !== undefined && lowest(group.token(worst), side),
    group.floor === null ? "no reward floor"
      : `${rollout.clipped} clipped (${percent(rollout.share)})`,
  ].filter(Boolean);
}

/** A button that goes there, for hands without the key n. */
function lowest({ R, text }, side) {
  const button = make("button", { type: "button", class: "low" },
    `lowest R ${signed(R, 2)} at “${glyphs(text)}”`);
  button.addEventListener("click", () => nextWorst(side));
  return button;
}

function parted(rollout, parting) {
  return parting >= rollout.length ? "◆ The same tokens as the other side, to the end."
    : `◆ Parts from the other side at token ${parting + 1}.`;
}

function samples(same, sample) {
  const button = make("button", { type: "button", class: "sample" },
    `sample ${sample + 1} of ${same.length}: next`);
  button.addEventListener("click", () => set({ sample: (sample + 1) % same.length, token: -1 }));
  return button;
}

/** The response: rewarded tokens as options of a listbox, what a tool said as plain text. */
function tokens(group, rollout, side, parting) {
  const box = make("div", {
    class: "tokens", role: "listbox", "aria-orientation": "horizontal", "data-side": side,
    "aria-label": `Tokens of the response, ${group.label}`,
  });
  let said = null;
  for (let k = 0; k < rollout.length; k++) {
    const token = group.token(rollout.start + k);
    if (token.observed) {
      if (!said) box.append(said = make("span", { class: "tool", role: "group" }));
      said.append(token.text);
      said.setAttribute("aria-label", `tool: ${said.textContent}`);
      continue;
    }
    said = null;
    box.append(tokenElement(token, k, parting));
    if (token.text.endsWith("\n")) box.append(make("br"));
  }
  const first = box.querySelector(".tk");
  if (first) first.tabIndex = 0;
  else box.append("No tokens were kept of it.");
  return box;
}

function tokenElement(token, k, parting) {
  const [classes, label, value] = looks(token);
  const marks = [token.kept && "kept", token.clipped && "clipped", k === parting && "parting"];
  const element = make("span", {
    class: ["tk", ...classes, ...marks.filter(Boolean)].join(" "), role: "option", tabindex: -1,
    "data-k": k, "data-label": label, "aria-label": spoken(token), "aria-selected": "false",
  }, glyphs(token.text));
  if (value > 0) element.style.setProperty("--strength", value);
  return element;
}

/** Of a token under the colour mode: classes, the label beneath, the colour's strength. */
function looks({ R, entropy, clipped, kept }) {
  const mark = clipped ? "▼" : "";
  if (state.colour === "entropy") {
    return entropy === null ? [[], mark, 0]
      : [["seq"], mark + (entropy < BLANK ? "" : plain(entropy, 1)), strength(entropy, FULL.entropy)];
  }
  if (state.colour === "clipped") return [clipped ? ["down"] : [], mark, clipped ? 1 : 0];
  if (state.colour === "kept") {
    return [kept ? ["seq"] : [], mark + (kept ? "●" : "○"), kept ? 0.6 : 0];
  }
  if (R === null || Math.abs(R) < BLANK) return [[], mark, 0];
  return [[R > 0 ? "up" : "down"], mark + signed(R, 1), strength(R, FULL.reward)];
}

function spoken(token) {
  const { R, clipped, kept } = token;
  return [`“${glyphs(token.text)}”`, R === null ? "not scored" : `R ${signed(R, 2)}`,
    clipped && "clipped", kept ? "kept" : "left out"].filter(Boolean).join(", ");
}

// --- the token looked at --------------------------------------------------------------------

const boxes = () => [...document.querySelectorAll("#panes .tokens")];
const boxOf = (side) => boxes().find((box) => Number(box.dataset.side) === side);
const elementOf = (side, k) => boxOf(side)?.querySelector(`.tk[data-k="${k}"]`);

/** Marks the state's token and shows its card; the one the keyboard comes to. */
function drawFocus() {
  const element = elementOf(state.pane, state.token);
  for (const old of document.querySelectorAll('.tk[aria-selected="true"]')) {
    old.setAttribute("aria-selected", "false");
  }
  if (!element) {
    Object.assign(state, { token: -1, pane: boxOf(state.pane) ? state.pane : 0 });
    drawCard(null);
    return;
  }
  for (const other of boxOf(state.pane).querySelectorAll('.tk[tabindex="0"]')) other.tabIndex = -1;
  element.tabIndex = 0;
  element.setAttribute("aria-selected", "true");
  drawCard(views()[state.pane], state.token);
}

function drawCard(view, k) {
  if (!view) {
    $("card").replaceChildren(make("p", { class: "hint" },
      "Point at a token, or press → or n (the lowest R), to see its numbers "
      + "and what the teacher would rather have said."));
    return;
  }
  const { group, rollout } = view, token = group.token(rollout.start + k);
  const chance = (logprob) => (logprob === null ? "–"
    : `${plain(logprob)} (${percent(Math.exp(logprob), 1)})`);
  const fate = token.clipped ? `▼ clipped at ${plain(group.floor)}` : "not clipped";
  const rows = [
    ["R", token.R === null ? "not scored" : `${signed(token.R, 2)} nats`],
    ["log p teacher", chance(token.teacher)], ["log p student", chance(token.student)],
    ["entropy", token.entropy === null ? "–" : `${plain(token.entropy)} nats`],
    ["reward", token.R === null ? "–" : fate],
    ["loss", token.kept ? "● kept" : "○ left out"],
  ];
  const where = `token ${k + 1} of ${rollout.length}${partner() ? `, ${group.label}` : ""}`;
  $("card").replaceChildren(
    make("div", { class: "numbers" },
      make("p", {}, make("b", { class: "what" }, glyphs(token.text)), " ", make("small", {}, where)),
      make("dl", {}, ...rows.map(([name, value]) => (
        make("div", {}, make("dt", {}, name), make("dd", {}, value)))))),
    alternatives(group, token));
}

function alternatives(group, token) {
  const found = group.alternatives(token.place);
  const box = make("div", { class: "others" }, make("p", {}, make("b", {}, "The teacher's likeliest"),
    found.length ? "" : ": not recorded for this token"));
  const line = ([text, share, sampled]) => make("li", sampled ? { class: "sampled" } : {},
    make("span", { class: "what" }, glyphs(text)),
    make("span", { class: "bar", "aria-hidden": "true", style: `--share:${share}` }),
    make("span", {}, share < 0.0005 ? "<0.1 %" : percent(share, 1), sampled ? " ◀ sampled" : ""));
  const lines = found.map(([text, share]) => [text, share, text === token.text]);
  if (found.length && token.teacher !== null && !lines.some(([, , sampled]) => sampled)) {
    lines.push([token.text, Math.min(1, Math.exp(token.teacher)), true]);
  }
  if (lines.length) box.append(make("ol", {}, ...lines.map(line)));
  return box;
}
