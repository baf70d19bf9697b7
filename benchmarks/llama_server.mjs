// Generates with llama.cpp (node-llama-cpp): one JSON line per request and per answer.
//
//   node llama_server.mjs MODEL.gguf THREADS SEQUENCES

import readline from "node:readline";
import { getLlama } from "node-llama-cpp";

const [file, threads, sequences] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: +threads });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({
  contextSize: 512,
  batchSize: 512,
  sequences: +sequences,
  threads: +threads,
});
const slots = Array.from({ length: +sequences }, () => context.getSequence());

async function generate(slot, prompt, n) {
  await slot.clearHistory();
  const tokens = [];
  for await (const token of slot.evaluate(prompt, { temperature: 0 })) {
    tokens.push(token);
    if (tokens.length === n) break;
  }
  return tokens;
}

console.log(JSON.stringify({ ready: true }));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { prompts, n } = JSON.parse(line);
  const began = performance.now();
  const tokens = await Promise.all(prompts.map((prompt, i) => generate(slots[i], prompt, n)));
  console.log(JSON.stringify({ seconds: (performance.now() - began) / 1000, tokens }));
}
