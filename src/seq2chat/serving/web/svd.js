/** The singular value decomposition M = U S Vᵀ of a small matrix, and its products. */

const SWEEPS = 60;
const TINY = 1e-12; // of the largest singular value: rounding

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
export const transposed = (m) => m[0].map((_, j) => m.map((row) => row[j]));
export const product = (a, b) => {
  const columns = transposed(b);
  return a.map((row) => columns.map((column) => dot(row, column)));
};

/**
 * Return `{u, s, v}` with singular values in descending order, by one-sided Jacobi rotations
 * (Hestenes 1958). The sign of a topic is chosen so that its largest entry in `v` is positive, and
 * values at the level of rounding are 0, as in `seq2chat.course.lsi.topics`.
 */
export function svd(matrix) {
  const isWide = matrix[0].length > matrix.length;
  // The columns of a tall matrix are rotated until they are orthogonal.
  const columns = isWide ? matrix.map((row) => [...row]) : transposed(matrix);
  const n = columns.length;
  const turned = Array.from({ length: n }, (_, i) =>
    Array.from({ length: n }, (_, j) => +(i === j)),
  );
  for (let sweep = 0; sweep < SWEEPS && rotateAll(columns, turned); sweep++);
  const order = columns
    .map((column, i) => ({ i, s: Math.sqrt(dot(column, column)) }))
    .sort((a, b) => b.s - a.s);
  const largest = order[0].s || 1;
  const s = order.map((one) => (one.s > TINY * largest ? one.s : 0));
  const left = order.map(({ i }, at) => columns[i].map((x) => (s[at] ? x / s[at] : 0)));
  const right = order.map(({ i }) => turned[i]);
  const [uRows, vRows] = isWide ? [right, left] : [left, right];
  const signs = vRows.map((row) =>
    Math.sign(row.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0)),
  );
  const signed = (rows) => transposed(rows.map((row, i) => row.map((x) => x * (signs[i] || 1))));
  return { u: signed(uRows), s, v: signed(vRows) };
}

/** Rotate each pair of columns once. Return true if one was not orthogonal. */
function rotateAll(columns, turned) {
  let hasChanged = false;
  for (let p = 0; p < columns.length; p++)
    for (let q = p + 1; q < columns.length; q++) {
      const [a, b] = [columns[p], columns[q]];
      const [aa, bb, ab] = [dot(a, a), dot(b, b), dot(a, b)];
      if (Math.abs(ab) <= 1e-15 * Math.sqrt(aa * bb) || ab === 0) continue;
      hasChanged = true;
      const zeta = (bb - aa) / (2 * ab);
      const t = (Math.sign(zeta) || 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
      const cosine = 1 / Math.sqrt(1 + t * t);
      for (const rows of [columns, turned]) rotate(rows, p, q, cosine, cosine * t);
    }
  return hasChanged;
}

function rotate(rows, p, q, cosine, sine) {
  const [a, b] = [rows[p], rows[q]];
  rows[p] = a.map((x, i) => cosine * x - sine * b[i]);
  rows[q] = b.map((y, i) => sine * a[i] + cosine * y);
}
