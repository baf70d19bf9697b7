/** The logit lens: the prediction that the model already holds after each of its parts. */

import { el } from "./dom.js";
import { frame, short } from "./panel.js";
import { percent, visible } from "./tokens.js";

const EXPLAIN =
  "After each part of the model, the residual stream is read as if the model ended there: it " +
  "passes the last norm and the output matrix. The bar is the probability of the followed token. " +
  "The last row is the prediction of the model itself.";

export async function lens({ trace, go }) {
  if (!trace.lens)
    return el("p", { class: "help" }, `A ${trace.family} has no residual stream to read.`);
  const text = (id) => visible(trace.texts[id] ?? String(id));
  const rows = trace.lens.map(({ site, top, target, norm }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, partName(site)),
      el(
        "td",
        {},
        el(
          "div",
          { class: "bar" },
          el("span", { class: "gauge", vars: { "--share": Math.exp(target) } }),
          el("span", { class: "share" }, percent(target)),
        ),
      ),
      top.map(([id, logprob]) =>
        el(
          "td",
          {},
          el(
            "button",
            {
              type: "button",
              class: "lens-cell",
              title: `${percent(logprob)}. Follow this token.`,
              vars: { "--share": Math.exp(logprob) },
              onclick: () => go({ target: id }),
            },
            text(id),
          ),
        ),
      ),
      el("td", { class: "share" }, short(norm)),
    ),
  );
  const head = [
    "After",
    `“${visible(trace.target.text)}”`,
    ...trace.lens[0].top.map((_, i) => `${i + 1}.`),
    "norm",
  ];
  return frame(
    {
      title: "Logit lens",
      explain: EXPLAIN,
      data: () => trace.lens,
      rows: () => [
        ["After", "Followed token", "Most likely", "Norm"],
        ...trace.lens.map(({ site, top, target, norm }) => [
          partName(site),
          percent(target),
          text(top[0][0]),
          short(norm),
        ]),
      ],
    },
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "lens" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head.map((cell) => el("th", { scope: "col" }, cell)),
          ),
        ),
        el("tbody", {}, rows),
      ),
    ),
  );
}

/** Return a name such as "layer 2, attention" of a site of the stream. */
export function partName(site) {
  const [, layer] = site.match(/\.(\d+)/) ?? [];
  if (site.endsWith(".input")) return "embedding";
  if (layer === undefined) return site;
  if (site.includes("cross_attn")) return `layer ${layer}, cross-attention`;
  if (site.includes("self_attn")) return `layer ${layer}, attention`;
  return `layer ${layer}, MLP`;
}
