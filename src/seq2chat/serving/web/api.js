/** A client of the server's HTTP API: its fields, its errors and its streams. */

/**
 * @typedef {{id: number, text: string, logprob: number, bytes?: number[], adds?: string,
 *   control?: true, top?: Piece[]}} Piece
 * One token. `bytes` is set if they are not whole characters by themselves. `adds` is the text that
 * came with the token, if its name is different. `control` is set on tokens without text.
 */

export const KEY = "seq2chat.key";
const ALTERNATIVES = 10;

/** Matches the names of control tokens, where only the name is known. */
export const CONTROL = /^<\|.+\|>$/;

export class ApiError extends Error {
  /** `code` is OpenAI's error code, if there is one. */
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return one sentence that explains the error to the user. */
export function sentence(error) {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError)
    return "The server does not answer. Is seq2chat serve still running?";
  return `Something unexpected happened: ${error.message}`;
}

export class Api {
  /**
   * `askKey(wasWrong)` prompts for the API key. It resolves to the key, or to null if the user
   * cancels.
   */
  constructor(askKey) {
    this.askKey = askKey;
    this.pendingKey = null;
  }

  /** Return the served models. */
  async models() {
    return (await (await this.#request("/v1/models")).json()).data;
  }

  /** Return the translation of a text, line by line. */
  async translate(model, text) {
    return (await (await this.#request("/v1/completions", { model, prompt: text })).json())
      .choices[0].text;
  }

  /** Return `{tokens, token_strs, roles}` of `input`, which has `messages` or a `prompt`. */
  async tokenize(model, input, signal) {
    return (await this.#request("/tokenize", { model, ...input }, signal)).json();
  }

  /** Return the text of ids, control tokens by name. */
  async detokenize(model, tokens) {
    return (await (await this.#request("/detokenize", { model, tokens })).json()).prompt;
  }

  /** Return the trace of one forward pass: the reply to `POST /api/traces`. */
  async trace(spec, signal) {
    return (await this.#request("/api/traces", spec, signal)).json();
  }

  /** Return a tensor of a trace: `{site, axes, shape, values}`, with `values` in row-major order. */
  async tensor(id, site, options, signal) {
    const query = new URLSearchParams({ site, ...options });
    const path = `/api/traces/${id}/tensor?${query}`;
    return decoded(await (await this.#request(path, undefined, signal)).arrayBuffer());
  }

  /** Return the runs whose training is shown. */
  async runs() {
    return (await (await this.#request("/api/runs")).json()).data;
  }

  /** Return the curves of a run. Without news the browser takes them from its cache. */
  async run(name, signal) {
    return (await this.#request(runPath(name), undefined, signal)).json();
  }

  /** Return the text that a run generated at a step. */
  async sample(name, step, signal) {
    const path = `${runPath(name)}/samples/${step}`;
    return (await (await this.#request(path, undefined, signal)).json()).text;
  }

  /** Return a measurement of a checkpoint: `tokens` of a text, `heads`, `gradients` or `bleu`. */
  async probe(name, step, kind, query, signal) {
    const path = `${runPath(name)}/checkpoints/${step}/${kind}?${new URLSearchParams(query)}`;
    return (await this.#request(path, undefined, signal)).json();
  }

  /**
   * Yield `{prompt, tokens, finish}` as an answer is written. `input` has `messages`, or a `prompt`
   * for a base model.
   */
  async *answer(model, input, sampling, signal) {
    const chat = "messages" in input;
    const logprobs = chat
      ? { logprobs: true, top_logprobs: ALTERNATIVES }
      : { logprobs: ALTERNATIVES };
    const body = {
      model,
      ...input,
      ...sampling,
      ...logprobs,
      stream: true,
      return_token_ids: true,
    };
    const response = await this.#request(
      chat ? "/v1/chat/completions" : "/v1/completions",
      body,
      signal,
    );
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message, chunk.error.code);
      const choice = chunk.choices?.[0];
      yield {
        prompt: chat ? chunk.prompt_token_ids : choice?.prompt_token_ids,
        tokens: chat ? chatPieces(choice?.logprobs?.content) : completionPieces(choice),
        finish: choice?.finish_reason,
      };
    }
    throw new ApiError(500, "The server ended the answer too early.");
  }

  async #request(path, body, signal) {
    for (let entered = null; ;) {
      const key = entered ?? sessionStorage.getItem(KEY);
      const response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers: {
          ...(body && { "Content-Type": "application/json" }),
          ...(key && { Authorization: `Bearer ${key}` }),
        },
        body: body && JSON.stringify(body),
        signal,
      });
      // Stored once it has worked.
      if (entered && response.status !== 401) sessionStorage.setItem(KEY, entered);
      if (response.ok) return response;
      if (response.status !== 401) throw await failure(response);
      // If several answers are refused at once, the user is prompted only once.
      this.pendingKey ??= this.askKey(key !== null).finally(() => (this.pendingKey = null));
      entered = await this.pendingKey;
      if (!entered) throw new ApiError(401, "The server requires an API key.");
    }
  }
}

const runPath = (name) => `/api/runs/${encodeURIComponent(name)}`;

/** Return the error of a failed response. */
async function failure(response) {
  const { error } = (await response.json().catch(() => null)) ?? {};
  const message = error?.message ?? `The server answered with error ${response.status}.`;
  return new ApiError(response.status, message, error?.code);
}

/** Return the tensor in the bytes of a reply: the length of a header, the header, the numbers. */
function decoded(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const Numbers = { u8sqrt: Uint8ClampedArray, f32: Float32Array, i32: Int32Array }[header.format];
  return { ...header, values: new Numbers(buffer, 4 + length) };
}

/** Yield the data of each server-sent event of a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const parts = buffer.split(/\r?\n\r?\n/);
      buffer = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function chatPieces(content) {
  return (content ?? []).map((entry) => ({ ...piece(entry), top: entry.top_logprobs.map(piece) }));
}

/**
 * Return a chat's log probability entry as a piece. Bytes that are not whole characters become
 * hexadecimal numbers.
 */
function piece({ token, token_id, logprob, bytes }) {
  const control = bytes.length === 0 && token !== "";
  if (control) return { id: token_id, text: token, logprob, control };
  try {
    return {
      id: token_id,
      text: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
        new Uint8Array(bytes),
      ),
      logprob,
    };
  } catch {
    return { id: token_id, text: inHex(bytes), logprob, bytes };
  }
}

/** Return hexadecimal numbers for bytes that are not whole characters. */
function inHex(bytes) {
  return `‹${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")}›`;
}

/**
 * Return the bytes in a name such as `bytes:\xe4\xbd`, with which completions name a part of a
 * character.
 */
function bytesIn(name) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return null;
  return name
    .split("\\x")
    .slice(1)
    .map((hex) => parseInt(hex, 16));
}

/** Return the pieces of a completion's chunk. Its alternatives have no ids. */
function completionPieces(choice) {
  const logprobs = choice?.logprobs;
  const named = (name, logprob) => {
    const bytes = bytesIn(name);
    if (bytes) return { text: inHex(bytes), logprob, bytes };
    return { text: name, logprob, ...(CONTROL.test(name) && { control: true }) };
  };
  const pieces = (logprobs?.tokens ?? []).map((text, i) => ({
    id: choice.token_ids[i],
    ...named(text, logprobs.token_logprobs[i]),
    top: Object.entries(logprobs.top_logprobs[i])
      .map(([other, logprob]) => named(other, logprob))
      .sort((a, b) => b.logprob - a.logprob),
  }));
  // The name of a token is not always its text, but the text of the chunk is.
  const [only] = pieces;
  if (pieces.length === 1 && !only.bytes && choice.text !== (only.control ? "" : only.text))
    only.adds = choice.text;
  return pieces;
}
