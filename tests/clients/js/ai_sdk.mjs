// Vercel's AI SDK with its provider for Amazon Bedrock.

import { createAmazonBedrock } from "@ai-sdk/amazon-bedrock";
import { createAmazonBedrockAnthropic } from "@ai-sdk/amazon-bedrock/anthropic";
import {
  embed,
  embedMany,
  generateImage,
  generateObject,
  generateText,
  rerank,
  stepCountIs,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

import {
  ACCESS_KEY_ID,
  BROKEN,
  KEY,
  PLAIN_URL,
  QUESTION,
  REFUSED,
  SECRET_ACCESS_KEY,
  SLOW,
  THROTTLED,
  URL,
  described,
  raised,
  step,
} from "./steps.mjs";

// docs: provider
const bedrock = createAmazonBedrock({
  baseURL: `${URL}/bedrock`,
  region: "us-west-2",
  apiKey: KEY,
});
// docs: end

const claude = bedrock("my-claude");

/** The parts of a stream, without those that only say that it goes on. */
async function parts(stream) {
  const found = [];
  for await (const part of stream) {
    if (part.type === "error") found.push({ type: "error", error: described(part.error) });
    else found.push(part);
  }
  return found;
}

/** Errors of a stream come as its parts; by default they are also printed. */
const onError = () => {};

const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({
    city: z.string(),
    unit: z.enum(["celsius", "kelvin"]),
    days: z.number().int().min(2),
  }),
  execute: async () => "Sunny and warm",
});

await step("text", async () => {
  const { text, usage, finishReason } = await generateText({ model: claude, prompt: QUESTION });
  return { text, usage, finishReason };
});

await step("stream", async () => {
  const streamed = streamText({ model: claude, prompt: QUESTION, onError });
  const found = await parts(streamed.fullStream);
  return {
    types: found.map((part) => part.type),
    pieces: found.filter((part) => part.type === "text-delta").map((part) => part.text),
    usage: await streamed.usage,
    finishReason: await streamed.finishReason,
  };
});

/** Two answers, by SigV4: the ids have a colon and a slash, which are part of what is signed. */
async function signed(accessKeyId, secretAccessKey) {
  const provider = createAmazonBedrock({
    baseURL: `${PLAIN_URL}/bedrock`,
    region: "us-west-2",
    accessKeyId,
    secretAccessKey,
  });
  const ids = ["us.amazon.nova-lite-v1:0", "arn:aws:bedrock:us-west-2::foundation-model/a.b-v1:0"];
  const texts = [];
  for (const id of ids) {
    texts.push((await generateText({ model: provider(id), prompt: QUESTION })).text);
  }
  return texts;
}

await step("signed", async () => await signed(KEY, "anything"));

await step("pair", async () => await signed(ACCESS_KEY_ID, SECRET_ACCESS_KEY));

await step("wrong_pair", async () => await raised(() => signed(ACCESS_KEY_ID, "anything")));

await step("tools", async () => {
  const asked = {
    model: claude,
    prompt: "Please call get_weather for me.",
    tools: { get_weather: weather },
    stopWhen: stepCountIs(3),
  };
  const { text, steps } = await generateText(asked);
  const streamed = streamText({ ...asked, onError });
  const found = await parts(streamed.fullStream);
  return {
    text,
    steps: steps.length,
    input: steps[0].toolCalls[0].input,
    streamedInput: found.find((part) => part.type === "tool-call").input,
    streamedText: await streamed.text,
  };
});

await step("object", async () => {
  const { object } = await generateObject({
    model: claude,
    schema: z.object({ name: z.string(), age: z.number().int() }),
    prompt: "Who is there?",
  });
  return object;
});

await step("embeddings", async () => {
  const titan = await embed({
    model: bedrock.embedding("amazon.titan-embed-text-v2:0"),
    value: "one two three",
  });
  const cohere = await embedMany({
    model: bedrock.embedding("cohere.embed-english-v3"),
    values: ["one", "two three"],
  });
  return {
    titan: titan.embedding.length,
    tokens: titan.usage.tokens,
    cohere: cohere.embeddings.map((each) => each.length),
  };
});

await step("image", async () => {
  const { image } = await generateImage({
    model: bedrock.image("amazon.nova-canvas-v1:0"),
    prompt: "nobody",
  });
  return { type: image.mediaType, bytes: image.uint8Array.length };
});

await step("rerank", async () => {
  const { ranking } = await rerank({
    model: bedrock.reranking("cohere.rerank-v3-5:0"),
    documents: ["nobody", "somebody"],
    query: QUESTION,
  });
  return ranking;
});

await step("anthropic", async () => {
  const provider = createAmazonBedrockAnthropic({
    baseURL: `${URL}/bedrock`,
    region: "us-west-2",
    apiKey: KEY,
  });
  const model = provider("us.anthropic.claude-sonnet-4-5-20250929-v1:0");
  const streamed = streamText({ model, prompt: QUESTION, onError });
  const found = await parts(streamed.fullStream);
  return {
    text: (await generateText({ model, prompt: QUESTION })).text,
    pieces: found.filter((part) => part.type === "text-delta").map((part) => part.text),
    errors: found.filter((part) => part.type === "error"),
  };
});

await step("errors", async () => {
  const ask = (model, provider = bedrock) => () =>
    raised(() => generateText({ model: provider(model), prompt: QUESTION, maxRetries: 0 }));
  const stranger = createAmazonBedrock({
    baseURL: `${URL}/bedrock`,
    region: "us-west-2",
    apiKey: "sk-nobody-knows-me",
  });
  return {
    refused: await ask(REFUSED)(),
    throttled: await ask(THROTTLED)(),
    unknown: await ask("no-such-model")(),
    stranger: await ask("my-claude", stranger)(),
  };
});

await step("retries", async () =>
  raised(() => generateText({ model: bedrock(THROTTLED), prompt: QUESTION, maxRetries: 1 })),
);

await step("broken_stream", async () => {
  const streamed = streamText({ model: bedrock(BROKEN), prompt: QUESTION, onError });
  const found = await parts(streamed.fullStream);
  return {
    pieces: found.filter((part) => part.type === "text-delta").map((part) => part.text),
    errors: found.filter((part) => part.type === "error").map((part) => part.error),
  };
});

await step("cancel", async () => {
  const controller = new AbortController();
  const { fullStream, response } = streamText({
    model: bedrock(SLOW),
    prompt: "Cancelled in mid-stream",
    abortSignal: controller.signal,
    onError,
  });
  response.then(null, () => {});
  const types = [];
  for await (const part of fullStream) {
    types.push(part.type);
    if (types.filter((type) => type === "text-delta").length === 3) controller.abort();
  }
  return types;
});

await step("parallel", async () => {
  const one = async (number) => {
    const prompt = `Question ${number}`;
    if (number % 2) return (await generateText({ model: claude, prompt })).text;
    return await streamText({ model: claude, prompt, onError }).text;
  };
  return await Promise.all([...Array(40).keys()].map(one));
});
