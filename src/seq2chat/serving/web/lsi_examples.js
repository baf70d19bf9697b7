/** The examples of the panel LSI. `fresh` are rows that the decomposition does not see. */

export const EXAMPLES = {
  movies: {
    label: "Persons × movies",
    source: "Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 11.3",
    columns: ["Matrix", "Alien", "Star Wars", "Casablanca", "Titanic"],
    rows: ["P1", "P2", "P3", "P4", "P5", "P6", "P7"],
    values: [
      [1, 1, 1, 0, 0],
      [3, 3, 3, 0, 0],
      [4, 4, 4, 0, 0],
      [5, 5, 5, 0, 0],
      [0, 2, 0, 4, 4],
      [0, 0, 0, 5, 5],
      [0, 1, 0, 2, 2],
    ],
    fresh: ["P8", "P9"],
    freshValues: [
      [5, 0, 0, 0, 0],
      [0, 4, 5, 0, 0],
    ],
  },
  words: {
    label: "Documents × terms",
    source: "Deerwester et al. 1990, table 2; the last rows are queries",
    columns: [
      "human",
      "interface",
      "computer",
      "user",
      "system",
      "response",
      "time",
      "EPS",
      "survey",
      "trees",
      "graph",
      "minors",
    ],
    rows: ["c1", "c2", "c3", "c4", "c5", "m1", "m2", "m3", "m4"],
    values: [
      [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0],
      [0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0],
      [1, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0],
      [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
      [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
      [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
      [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1],
    ],
    fresh: ["human computer", "user time"],
    freshValues: [
      [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0],
    ],
  },
};
