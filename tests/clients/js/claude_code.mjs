// Claude Code as its users run it, without a terminal.

import { execFile } from "node:child_process";
import { chmod, mkdir, mkdtemp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import {
  ACCESS_KEY_ID,
  BROKEN,
  KEY,
  PLAIN_URL,
  QUESTION,
  REFUSED,
  REGION,
  SECRET_ACCESS_KEY,
  THROTTLED,
  URL,
  step,
} from "./steps.mjs";

const here = (path) => fileURLToPath(new globalThis.URL(path, import.meta.url));

// A home, a folder to work in and a `claude` of our own. The package's own is put in its
// place by a script after the installation, which was left out.
const home = await mkdtemp(join(process.env.HOME, "claude-"));
const work = join(home, "work");
await mkdir(work);
await writeFile(join(work, "sandbox"), "It is written here.\n");
const claude = join(home, "claude");
const wrapper = here("node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs");
await writeFile(claude, `#!/bin/sh\nexec node '${wrapper}' "$@"\n`);
await chmod(claude, 0o755);

const surroundings = {
  ...process.env,
  HOME: home,
  PATH: `${home}:${process.env.PATH}`,
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
  CLAUDE_CODE_MAX_RETRIES: "1",
  DISABLE_AUTOUPDATER: "1",
};

const bedrock = {
  CLAUDE_CODE_USE_BEDROCK: "1",
  AWS_REGION: REGION,
  ANTHROPIC_BEDROCK_BASE_URL: `${URL}/bedrock`,
};
const bearer = { ...bedrock, AWS_BEARER_TOKEN_BEDROCK: KEY };

/** What a command writes, and how it ends. */
async function run(command, options, environment) {
  const running = promisify(execFile)(command, options, {
    cwd: work,
    env: { ...surroundings, ...environment },
    maxBuffer: 16 * 1024 * 1024,
    timeout: 50_000,
  });
  running.child.stdin.end();
  try {
    const { stdout } = await running;
    return { status: 0, output: stdout.trim() };
  } catch (error) {
    if (error.killed || typeof error.code !== "number") throw error;
    return { status: error.code, output: error.stdout.trim() };
  }
}

const ask = (environment, ...options) => run(claude, ["-p", QUESTION, ...options], environment);

await step("hello", async () => await run("sh", [here("claude_code.sh")], {}));

await step("names", async () => ({
  alias: await ask({ ...bearer, ANTHROPIC_MODEL: "my-claude" }),
  arn: await ask({
    ...bearer,
    ANTHROPIC_MODEL:
      "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3d4e5f6",
  }),
}));

await step("signed", async () => {
  const signing = (id, secret) => ({
    ...bedrock,
    ANTHROPIC_BEDROCK_BASE_URL: `${PLAIN_URL}/bedrock`,
    AWS_ACCESS_KEY_ID: id,
    AWS_SECRET_ACCESS_KEY: secret,
  });
  return {
    key: await ask(signing(KEY, "anything")),
    pair: await ask(signing(ACCESS_KEY_ID, SECRET_ACCESS_KEY)),
  };
});

await step("token", async () =>
  ask({ ...bedrock, CLAUDE_CODE_SKIP_BEDROCK_AUTH: "1", ANTHROPIC_AUTH_TOKEN: KEY }),
);

await step("stream", async () => {
  const options = ["--output-format", "stream-json", "--verbose", "--include-partial-messages"];
  const { output } = await ask(bearer, ...options);
  const events = output.split("\n").map((line) => JSON.parse(line));
  const streamed = events.filter((event) => event.type === "stream_event");
  return {
    types: streamed.map(({ event }) => event.type),
    pieces: streamed
      .filter(({ event }) => event.delta?.type === "text_delta")
      .map(({ event }) => event.delta.text),
    result: events.at(-1).result,
  };
});

await step("tool", async () => {
  const options = ["-p", "Please call Read", "--output-format", "stream-json", "--verbose"];
  const { output } = await run(claude, options, bearer);
  const events = output.split("\n").map((line) => JSON.parse(line));
  const blocks = events.flatMap((event) => event.message?.content ?? []);
  return {
    used: blocks.filter((block) => block.type === "tool_use"),
    results: blocks.filter((block) => block.type === "tool_result"),
    result: events.at(-1).result,
  };
});

await step("errors", async () => {
  const found = {};
  for (const ANTHROPIC_MODEL of ["no-such-model", REFUSED, THROTTLED, BROKEN]) {
    found[ANTHROPIC_MODEL] = await ask({ ...bearer, ANTHROPIC_MODEL });
  }
  return found;
});

await step("stranger", async () =>
  ask({ ...bedrock, AWS_BEARER_TOKEN_BEDROCK: "sk-nobody-knows-me" }),
);
