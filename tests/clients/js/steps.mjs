// For client programs: steps that are run one after another and told of as JSON.

import { stdout } from "node:process";

// The gateway over TLS and over plain http, with nothing after the port.
export const { URL, PLAIN_URL, KEY, ACCESS_KEY_ID, SECRET_ACCESS_KEY } = process.env;

export const REGION = "us-west-2";
export const QUESTION = "Who are you really?";

// What goes wrong goes wrong by the name of a model; see programs/models.py.
export const REFUSED = "anthropic.claude-3-haiku-20240307-v1:0";
export const THROTTLED = "anthropic.claude-3-sonnet-20240229-v1:0";
export const BROKEN = "anthropic.claude-3-5-sonnet-20240620-v1:0";
export const SLOW = "anthropic.claude-3-opus-20240229-v1:0";

/** What the tool `get_weather` wants, as JSON Schema. */
export const WEATHER = {
  type: "object",
  properties: {
    city: { type: "string" },
    unit: { enum: ["celsius", "kelvin"] },
    days: { type: "integer", minimum: 2 },
  },
  required: ["city", "unit", "days"],
};

const LONGEST_MS = 60_000;

// What libraries print is none of the results.
console.log = console.info = console.debug = console.error;

/**
 * Run a step, whatever becomes of it, and tell of it in one line.
 *
 * @param name what the test calls it
 * @param run its result is JSON
 */
export async function step(name, run) {
  const told = { step: name };
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done in ${LONGEST_MS} ms`)), LONGEST_MS);
  });
  try {
    told.result = (await Promise.race([run(), late])) ?? null;
  } catch (error) {
    told.raised = `${error?.stack ?? error}`;
  }
  clearTimeout(timer);
  stdout.write(`${JSON.stringify(told)}\n`);
}

/**
 * What a promise is rejected with, as its user sees it.
 *
 * @param call gives the promise
 */
export async function raised(call) {
  let value;
  try {
    value = await call();
  } catch (error) {
    return described(error);
  }
  throw new Error(`nothing was thrown, but there is ${JSON.stringify(value)}`);
}

/** A thrown thing: its class and message, and the status where it has one. */
export function described(error) {
  return {
    class: error?.constructor?.name ?? typeof error,
    name: error?.name,
    code: error?.code,
    message: `${error?.message ?? error}`,
    status: error?.$metadata?.httpStatusCode ?? error?.statusCode ?? error?.status,
    attempts: error?.$metadata?.attempts,
  };
}

/** The body of `InvokeModel` for a model of Anthropic's, as text. */
export function anthropicBody(text = QUESTION) {
  return JSON.stringify({
    anthropic_version: "bedrock-2023-05-31",
    max_tokens: 200,
    messages: [{ role: "user", content: text }],
  });
}
