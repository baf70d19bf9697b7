/** Scales of a chart: round ticks, linear or logarithmic. */

const MOST_TICKS = 7;

/** Return round numbers between `low` and `high`, at most MOST_TICKS. */
export function ticks(low, high) {
  const rough = (high - low) / (MOST_TICKS - 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => +((first + i) * step).toPrecision(12));
}

/** Return powers of ten between `low` and `high`, and 2 and 5 times them if there are few. */
export function logTicks(low, high) {
  const powers = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) powers.push(e);
  const steps = powers.length > 3 ? [1] : [1, 2, 5];
  const all = powers.flatMap((e) => steps.map((step) => +(step * 10 ** e).toPrecision(12)));
  const inside = all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  const stride = Math.ceil(inside.length / MOST_TICKS);
  return inside.length > 1 ? inside.filter((_, i) => i % stride === 0) : [low, high];
}

/**
 * Return `{at, ticks}`: the pixel of a value between `from` and `to`, and the values to name. A
 * logarithmic scale has no place for numbers up to 0.
 */
export function scale(low, high, from, to, isLog = false) {
  if (high === low) {
    const pad = isLog ? low * 0.5 : Math.abs(low) * 0.05 || 1;
    [low, high] = [low - pad, high + pad];
  }
  const f = isLog ? Math.log : (value) => value;
  const [start, end] = [f(low), f(high)];
  return {
    at: (value) => from + ((to - from) * (f(value) - start)) / (end - start),
    ticks: isLog ? logTicks(low, high) : ticks(low, high),
  };
}
