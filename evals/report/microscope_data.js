"use strict";
// The data, unpacked once and read by column. Nothing here knows of the page.

const KEPT = 1, OBSERVED = 2, CLIPPED = 4;

async function unpack(base64) {
  const binary = atob(base64), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const inflater = new DecompressionStream("deflate"), writer = inflater.writable.getWriter();
  writer.write(bytes);
  writer.close();
  const data = JSON.parse(await new Response(inflater.readable).text());
  return data.groups.map((columns) => new Group(columns, data.texts, data.pictures));
}

class Group {
  constructor(columns, texts, pictures) {
    Object.assign(this, { columns, texts, label: columns.label, floor: columns.floor });
    this.firstOther = running(columns.others);
    const starts = running(columns.length), named = (place) => (place < 0 ? "" : texts[place]);
    this.rollouts = columns.length.map((length, i) => ({
      i, length, start: starts[i],
      prompt: named(columns.prompt[i]),
      answer: named(columns.answer[i]),
      reward: nats(columns.reward[i]),
      end: named(columns.end[i]),
      question: columns.question[i],
      environment: named(columns.environment[i]),
      pictures: columns.pictures[i].map((place) => pictures[place]),
      ...this.summary(starts[i], length),
    }));
    this.byQuestion = new Map();
    for (const { i, question } of this.rollouts) {
      if (question < 0) continue;
      if (!this.byQuestion.has(question)) this.byQuestion.set(question, []);
      this.byQuestion.get(question).push(i);
    }
  }

  summary(start, length) {
    const { reward_of: rewards, flags } = this.columns;
    let sum = 0, scored = 0, clipped = 0, said = 0;
    for (let place = start; place < start + length; place++) {
      if (!(flags[place] & OBSERVED)) said++;
      if (flags[place] & CLIPPED) clipped++;
      if (rewards[place] === null) continue;
      sum += rewards[place];
      scored++;
    }
    const known = scored > 0;
    return {
      said, clipped, sum: known ? sum / 1000 : null, mean: known ? sum / scored / 1000 : null,
      share: known ? clipped / scored : 0,
    };
  }

  token(place) {
    const { columns, texts } = this, flags = columns.flags[place];
    const R = nats(columns.reward_of[place]), student = nats(columns.student[place]);
    return {
      R, student, place,
      text: texts[columns.text[place]],
      teacher: R === null || student === null ? null : R + student,
      entropy: nats(columns.entropy[place]),
      kept: Boolean(flags & KEPT),
      observed: Boolean(flags & OBSERVED),
      clipped: Boolean(flags & CLIPPED),
    };
  }

  /** The teacher's likeliest tokens there, [text, probability] each; none where none were kept. */
  alternatives(place) {
    const { columns, firstOther } = this, found = [];
    for (let i = firstOther[place]; i < firstOther[place] + columns.others[place]; i++) {
      found.push([this.texts[columns.other[i]], columns.chance[i] / 1000]);
    }
    return found;
  }

  /** What a search looks through, made when first asked for. */
  searched(rollout) {
    if (rollout.searched === undefined) {
      const parts = [rollout.prompt, "\n"], { text } = this.columns;
      for (let k = 0; k < rollout.length; k++) parts.push(this.texts[text[rollout.start + k]]);
      rollout.searched = parts.concat("\n", rollout.answer).join("").toLowerCase();
    }
    return rollout.searched;
  }

  /** Places of a rollout's rewarded tokens, the lowest R first. */
  worstFirst(rollout) {
    const rewards = this.columns.reward_of;
    const places = Array.from({ length: rollout.length }, (_, k) => rollout.start + k);
    return places.filter((place) => rewards[place] !== null).sort((a, b) => rewards[a] - rewards[b]);
  }

  /** Up to `most` numbers for a strip: R of each token, or the furthest from 0 of several. */
  strip(rollout, most) {
    const bins = Math.min(most, rollout.length), strip = new Array(bins).fill(0);
    for (let k = 0; k < rollout.length; k++) {
      const bin = Math.floor((k * bins) / rollout.length);
      const R = (this.columns.reward_of[rollout.start + k] ?? 0) / 1000;
      if (Math.abs(R) > Math.abs(strip[bin])) strip[bin] = R;
    }
    return strip;
  }
}

const right = (rollout) => rollout.reward !== null && rollout.reward >= 1;
const wrong = (rollout) => rollout.reward !== null && rollout.reward <= 0;
const scored = (rollout) => rollout.mean !== null;
const byMean = (a, b) => a.mean - b.mean;

/** What the list can show: which rollouts, in which order (none: as written). */
const SORTS = {
  all: { name: "all, as written", keep: () => true },
  worst: { name: "lowest mean R first", keep: scored, order: byMean },
  sum: { name: "lowest sum of R first", keep: scored, order: (a, b) => a.sum - b.sum },
  clipped: {
    name: "most clipped first", keep: (each) => each.clipped > 0,
    order: (a, b) => b.clipped - a.clipped || b.share - a.share,
  },
  longest: { name: "longest first", keep: () => true, order: (a, b) => b.said - a.said },
  wrong: {
    name: "wrong answers", keep: wrong,
    order: (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity) || 0,
  },
  punished: {
    name: "right, yet punished", keep: (each) => right(each) && scored(each), order: byMean,
  },
};

function listed(group, sort, query, partner) {
  const { keep, order } = SORTS[sort], words = query.trim().toLowerCase();
  const found = group.rollouts.filter((each) => keep(each)
    && (!partner || partner.byQuestion.has(each.question))
    && (!words || group.searched(each).includes(words)));
  return order ? found.sort((a, b) => order(a, b) || a.i - b.i) : found;
}

/** The group that shares most prompts with this one; the next where none does. */
function likeliestPartner(groups, own) {
  const shared = groups.map((group, i) => (i === own ? -1
    : groups[own].rollouts.filter((each) => group.byQuestion.has(each.question)).length));
  const most = Math.max(...shared);
  return most > 0 ? shared.indexOf(most) : (own + 1) % groups.length;
}

/** How many tokens two rollouts have in common before they part. */
function commonTokens(one, a, other, b) {
  let k = 0;
  const text = (group, rollout) => group.columns.text[rollout.start + k];
  while (k < Math.min(a.length, b.length) && text(one, a) === text(other, b)) k++;
  return k;
}

function nats(thousandths) {
  return thousandths === null ? null : thousandths / 1000;
}

function running(lengths) {
  const starts = new Int32Array(lengths.length);
  for (let i = 1; i < lengths.length; i++) starts[i] = starts[i - 1] + lengths[i - 1];
  return starts;
}
