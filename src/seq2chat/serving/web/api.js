/** The server's HTTP API: one place that knows its fields, its errors and its streams. */

/** @typedef {{id: number, text: string, logprob: number, bytes?: number[], adds?: string, control?: true, top?: Piece[]}} Piece
 * One token. `bytes` is there where they are not whole characters by themselves, or `adds`, the text that came with it,
 * where its name is not that text; `control` says that it has no text. */

export const KEY = "seq2chat.key";
const ALTERNATIVES = 10;

/** How control tokens are named, where nothing else tells them apart. */
export const CONTROL = /^<\|.+\|>$/;

export class ApiError extends Error {
  /** `code` is OpenAI's name of the error, where it has one. */
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return one sentence for a user about what went wrong. */
export function sentence(error) {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return "The server does not answer. Is seq2chat serve still running?";
  return `Something unexpected happened: ${error.message}`;
}

export class Api {
  /** `askKey(wasWrong)` asks the user for the API key; it resolves to the key, or to null where none is given. */
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
  }

  /** Return all models that are served. */
  async models() {
    return (await (await this.#request("/v1/models")).json()).data;
  }

  /** Return the translation of a text, line by line. */
  async translate(model, text) {
    return (await (await this.#request("/v1/completions", { model, prompt: text })).json()).choices[0].text;
  }

  /** Return the tokens of `what`, which has `messages` or a `prompt`: `{tokens, token_strs, roles}`. */
  async tokenize(model, what, signal) {
    return (await this.#request("/tokenize", { model, ...what }, signal)).json();
  }

  /** Return the text of ids, control tokens by name. */
  async detokenize(model, tokens) {
    return (await (await this.#request("/detokenize", { model, tokens })).json()).prompt;
  }

  /**
   * Yield `{prompt, tokens, finish}` as an answer is written. `asked` are the fields that say what the model reads:
   * `messages`, or `prompt` for a base model.
   */
  async *answer(model, asked, sampling, signal) {
    const chat = "messages" in asked;
    const wish = chat ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
    const body = { model, ...asked, ...sampling, ...wish, stream: true, return_token_ids: true };
    const response = await this.#request(chat ? "/v1/chat/completions" : "/v1/completions", body, signal);
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
    throw new ApiError(500, "The server ended the answer in the middle.");
  }

  async #request(path, body, signal) {
    for (let given = null; ; ) {
      const key = given ?? sessionStorage.getItem(KEY);
      const response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers: {
          ...(body && { "Content-Type": "application/json" }),
          ...(key && { Authorization: `Bearer ${key}` }),
        },
        body: body && JSON.stringify(body),
        signal,
      });
      if (given && response.status !== 401) sessionStorage.setItem(KEY, given); // kept once it has worked
      if (response.ok) return response;
      if (response.status !== 401) throw await failure(response);
      // Several answers may be refused at once: the key is asked for once.
      this.asking ??= this.askKey(key !== null).finally(() => (this.asking = null));
      given = await this.asking;
      if (!given) throw new ApiError(401, "The server asks for an API key.");
    }
  }
}

/** Return the error that a response stands for. */
async function failure(response) {
  const { error } = (await response.json().catch(() => null)) ?? {};
  const message = error?.message ?? `The server answered with error ${response.status}.`;
  return new ApiError(response.status, message, error?.code);
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

/** A chat's entry as a piece. Its text stands for itself: bytes that are no whole characters are shown as numbers. */
function piece({ token, token_id, logprob, bytes }) {
  const control = bytes.length === 0 && token !== "";
  if (control) return { id: token_id, text: token, logprob, control };
  try {
    return {
      id: token_id,
      text: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes)),
      logprob,
    };
  } catch {
    return { id: token_id, text: inHex(bytes), logprob, bytes };
  }
}

/** Show bytes that are no whole characters. */
function inHex(bytes) {
  return `‹${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")}›`;
}

/** Return the bytes in a name such as `bytes:\xe4\xbd`, which a completion gives to a part of a character. */
function bytesIn(name) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return null;
  return name.split("\\x").slice(1).map((hex) => parseInt(hex, 16));
}

/** A completion's chunk as pieces; alternatives come without their ids. */
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
  // The name of a token is not always its text; what the chunk adds to the answer is.
  const [only] = pieces;
  if (pieces.length === 1 && !only.bytes && choice.text !== (only.control ? "" : only.text)) only.adds = choice.text;
  return pieces;
}
