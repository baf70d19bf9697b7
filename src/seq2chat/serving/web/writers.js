/** Who wrote this: the parts of the model whose outputs add up to the logit of one token. */

import { el } from "./dom.js";
import { partName } from "./lens.js";
import { frame, short } from "./panel.js";
import { visible } from "./tokens.js";

const EXPLAIN =
  "The last hidden vector is the sum of the embedding and of all heads and MLPs, so the logit of a " +
  "token is a sum of one number per part (direct logit attribution). The scale of the last norm is " +
  "held fixed. Parts to the right raise the token, parts to the left lower it.";

export async function writers({ trace, go }) {
  if (!trace.attribution)
    return el(
      "p",
      { class: "help" },
      `The logits of a ${trace.family} are not a sum over its parts.`,
    );
  const parts = [...trace.attribution].sort((a, b) => b.logit - a.logit);
  const largest = Math.max(...parts.map(({ logit }) => Math.abs(logit)));
  const name = ({ site, head }) =>
    head === null
      ? site === "others"
        ? "all others"
        : partOf(site)
      : `${partOf(site)}, head ${head}`;
  const layerOf = ({ site }) => Number(site.match(/\.(\d+)/)?.[1]);
  const mapOf = ({ site }) => site.replace(/\.\d+\./, ".*.").replace(/\.context$/, "");
  return frame(
    {
      title: "Who wrote this",
      explain: EXPLAIN,
      data: () => trace.attribution,
      rows: () => [["Part", "Logit"], ...parts.map((part) => [name(part), short(part.logit)])],
    },
    el(
      "p",
      { class: "told" },
      `The logit of “${visible(trace.target.text)}” is ${short(trace.target.logit)}: the sum of these.`,
    ),
    el(
      "ul",
      { class: "signed" },
      parts.map((part) =>
        el(
          "li",
          {},
          part.head === null
            ? el("span", {}, name(part))
            : el(
                "button",
                {
                  type: "button",
                  class: "link",
                  onclick: () =>
                    go({
                      panel: "attention",
                      map: mapOf(part),
                      layer: layerOf(part),
                      head: part.head,
                    }),
                },
                name(part),
              ),
          el("span", {
            class: part.logit < 0 ? "beam minus" : "beam",
            vars: { "--share": Math.abs(part.logit) / largest },
          }),
          el("span", { class: "share" }, short(part.logit)),
        ),
      ),
    ),
  );
}

/** Return a name such as "layer 2, attention" of the site of a part. */
function partOf(site) {
  const [, layer] = site.match(/\.(\d+)/) ?? [];
  // "embedding", "positions", "segments", "biases" and "rest".
  if (layer === undefined) return site;
  return partName(site) + (site.endsWith(".bias") ? ", bias" : "");
}
