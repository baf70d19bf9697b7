/** Over training: the checkpoints of one run, and when its heads begin to look back. */

import { el } from "./dom.js";
import { frame, short, toTable } from "./panel.js";
import { siblings } from "./steps.js";
import { percent } from "./tokens.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, MARGIN] = [560, 220, 36];
const LENGTH = 24; // tokens that are repeated, if they fit the context twice
const SEED = 2463534242;

const EXPLAIN =
  "Two scores per head, on random tokens that are repeated once. A previous-token head attends to " +
  "the token before. An induction head attends to the token that followed the same token earlier " +
  "(Olsson et al. 2022), which is how a model continues what it has seen. Serve the checkpoints of " +
  "one run to see when such heads form: seq2chat serve runs/mine/checkpoints/*";

/** Return random tokens twice, the same ones for every checkpoint. */
export function repeated(vocabulary, length) {
  let x = SEED;
  const once = Array.from({ length }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % vocabulary;
  });
  return [...once, ...once];
}

/** Return `{previous, induction}`: mean weights of one head with `n` queries and keys. */
export function scores(weight, n) {
  const period = n / 2;
  let [previous, induction] = [0, 0];
  for (let query = 1; query < n; query++) previous += weight(query, query - 1) / (n - 1);
  for (let query = period; query < n; query++)
    induction += weight(query, query - period + 1) / period;
  return { previous, induction };
}

const measured = new Map(); // by the request, so that a slider computes nothing again
const KEPT = 500;

/** Return the result of `measure()`, computed once for each key. A failed one is not kept. */
async function once(key, measure) {
  if (!measured.has(key)) {
    const result = await measure();
    if (measured.size >= KEPT) measured.delete(measured.keys().next().value);
    measured.set(key, result);
  }
  return measured.get(key);
}

/** Return the scores of all heads of a model: `{nHead, heads}`. */
async function headScores(api, request, signal) {
  const one = await api.trace(request, signal);
  const site = "layers.*.self_attn.heads";
  const { shape, values } = await api.tensor(one.id, site, { format: "f32" }, signal);
  const [nLayer, nHead, n] = shape;
  const heads = Array.from({ length: nLayer * nHead }, (_, at) =>
    scores((q, k) => values[(at * n + q) * n + k], n),
  );
  return { nHead, heads };
}

export async function checkpoints({ trace, spec, model, models, api, state, go, signal }) {
  const steps = siblings(models, model.id);
  const series = steps.length ? steps : [{ id: model.id, step: 0 }];
  if (!trace.sites.some(({ name }) => name === "layers.*.self_attn.heads"))
    return el("p", { class: "help" }, "This panel is for a GPT or a BERT.");
  const tokens = repeated(model.vocab_size, Math.min(LENGTH, model.context >> 1));
  const points = [];
  for (const { id, step } of series) {
    const request = { model: id, tokens };
    const own = { ...spec, model: id, target: trace.target.id };
    const measures = [
      once(JSON.stringify(request), () => headScores(api, request, signal)),
      once(JSON.stringify(own), async () => (await api.trace(own, signal)).target.logprob),
    ];
    const [{ nHead, heads }, logprob] = await Promise.all(measures);
    points.push({ id, step, nHead, heads, logprob });
  }
  const name = (at) => `layer ${Math.floor(at / points[0].nHead)}, head ${at % points[0].nHead}`;
  const rows = (kind) => points[0].heads.map((_, at) => points.map(({ heads }) => heads[at][kind]));
  return frame(
    {
      title: "Over training",
      explain: EXPLAIN,
      data: () => points,
      rows: () => [
        [
          "Head",
          ...points.flatMap(({ step }) => [`previous, step ${step}`, `induction, step ${step}`]),
        ],
        ...points[0].heads.map((_, at) => [
          name(at),
          ...points.flatMap(({ heads }) => [short(heads[at].previous), short(heads[at].induction)]),
        ]),
      ],
    },
    el(
      "p",
      { class: "told" },
      steps.length > 1
        ? `${steps.length} checkpoints. Point at a line for its head.`
        : "One checkpoint is served. Serve several to see lines.",
    ),
    ["previous", "induction"].map((kind) =>
      el(
        "figure",
        {},
        el("figcaption", {}, kind === "previous" ? "previous-token score" : "induction score"),
        chart(
          points.map(({ step }) => step),
          rows(kind),
          name,
          `The ${kind === "previous" ? "previous-token" : "induction"} scores of all heads by step`,
          (at) =>
            go({
              panel: "attention",
              layer: Math.floor(at / points[0].nHead),
              head: at % points[0].nHead,
            }),
        ),
      ),
    ),
    toTable(
      [
        ["step", "best induction head", "score", `probability of “${trace.target.text}”`],
        ...points.map(({ id, step, heads, logprob }) => {
          const best = heads.reduce(
            (most, { induction }, at) => (induction > heads[most].induction ? at : most),
            0,
          );
          const isOwn = id === model.id && "true";
          const open = () => go({ model: id, panel: state.panel });
          return [
            el(
              "button",
              { type: "button", class: "link", "aria-current": isOwn, onclick: open },
              step,
            ),
            name(best),
            short(heads[best].induction),
            percent(logprob),
          ];
        }),
      ],
      "effects",
    ),
  );
}

/** Return a chart of one line per head, from 0 to 1. */
function chart(steps, lines, name, label, open) {
  const make = (tag, attributes, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const last = Math.max(...steps, 1);
  const x = (step) => MARGIN + ((WIDTH - 2 * MARGIN) * step) / last;
  const y = (value) => HEIGHT - MARGIN - (HEIGHT - 1.5 * MARGIN) * value;
  const axes = [0, 0.5, 1].flatMap((value) => [
    make("line", { x1: MARGIN, x2: WIDTH - MARGIN, y1: y(value), y2: y(value), class: "axis" }),
    make("text", { x: MARGIN - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)),
  ]);
  const ticks = steps.map((step) =>
    make("text", { x: x(step), y: HEIGHT - 12, "text-anchor": "middle" }, String(step)),
  );
  const drawn = lines.map((values, at) => {
    const points = values.map((value, i) => `${x(steps[i])},${y(value)}`);
    const shape =
      values.length > 1
        ? make("polyline", { points: points.join(" ") })
        : make("circle", { cx: x(steps[0]), cy: y(values[0]), r: 4 });
    shape.append(make("title", {}, `${name(at)}: ${values.map(short).join(", ")}`));
    shape.addEventListener("click", () => open(at));
    return shape;
  });
  return make(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      width: WIDTH,
      class: "drawing chart",
      role: "img",
      "aria-label": label,
    },
    ...axes,
    ...ticks,
    ...drawn,
  );
}
