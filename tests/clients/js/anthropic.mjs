// Anthropic's SDK for Bedrock.

import { AnthropicBedrock } from "@anthropic-ai/bedrock-sdk";

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
  WEATHER,
  described,
  raised,
  step,
} from "./steps.mjs";

// docs: client
const client = new AnthropicBedrock({
  baseURL: `${URL}/bedrock`,
  awsRegion: "us-west-2",
  apiKey: KEY,
});
// docs: end

const request = (text = QUESTION, model = "my-claude") => ({
  model,
  max_tokens: 200,
  messages: [{ role: "user", content: text }],
});

/** The events of a stream, and what it threw if it did. */
async function events(stream) {
  const found = [];
  try {
    for await (const event of stream) found.push(event);
  } catch (error) {
    return { events: found, error: described(error) };
  }
  return { events: found };
}

const pieces = (found) =>
  found.filter((event) => event.delta?.type === "text_delta").map((event) => event.delta.text);

await step("message", async () => await client.messages.create(request()));

await step("stream", async () => {
  const { events: found, error } = await events(
    await client.messages.create({ ...request(), stream: true }),
  );
  const helped = client.messages.stream(request());
  const message = await helped.finalMessage();
  return {
    types: found.map((event) => event.type),
    pieces: pieces(found),
    error,
    final: { text: message.content[0].text, stop: message.stop_reason, usage: message.usage },
  };
});

await step("ids", async () => {
  const names = [
    "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "arn:aws:bedrock:us-west-2::foundation-model/anthropic.claude-instant-v1:2:100k",
  ];
  const texts = [];
  for (const name of names) {
    texts.push((await client.messages.create(request(QUESTION, name))).content[0].text);
  }
  return texts;
});

/** Two answers, whole and streamed, by SigV4; the id has a colon, which is not escaped. */
async function signed(awsAccessKey, awsSecretKey) {
  const signing = new AnthropicBedrock({
    baseURL: `${PLAIN_URL}/bedrock`,
    awsRegion: "us-west-2",
    awsAccessKey,
    awsSecretKey,
  });
  const asked = request(QUESTION, "us.anthropic.claude-sonnet-4-5-20250929-v1:0");
  const whole = await signing.messages.create(asked);
  const { events: found, error } = await events(
    await signing.messages.create({ ...asked, stream: true }),
  );
  return [whole.content[0].text, error ?? pieces(found).join("")];
}

await step("signed", async () => await signed(KEY, "anything"));

await step("pair", async () => await signed(ACCESS_KEY_ID, SECRET_ACCESS_KEY));

await step("wrong_pair", async () => await raised(() => signed(ACCESS_KEY_ID, "anything")));

await step("tools", async () => {
  const asked = {
    ...request("Please call get_weather for me."),
    tools: [{ name: "get_weather", description: "Of a city.", input_schema: WEATHER }],
  };
  const first = await client.messages.create(asked);
  const streamed = await client.messages.stream(asked).finalMessage();
  const result = {
    type: "tool_result",
    tool_use_id: first.content[0].id,
    content: "Sunny and warm",
  };
  const second = await client.messages.create({
    ...asked,
    messages: [
      ...asked.messages,
      { role: "assistant", content: first.content },
      { role: "user", content: [result] },
    ],
  });
  return {
    stop: first.stop_reason,
    used: first.content[0],
    streamed: streamed.content[0],
    text: second.content[0].text,
  };
});

// A beta goes as a header and in the body.
await step("beta", async () => {
  const betas = ["context-1m-2025-08-07"];
  const message = await client.beta.messages.create({ ...request("With a beta"), betas });
  return message.content[0].text;
});

await step("errors", async () => {
  const ask = (model, from = client) =>
    raised(() => from.messages.create(request(QUESTION, model), { maxRetries: 0 }));
  const options = { baseURL: `${URL}/bedrock`, awsRegion: "us-west-2" };
  const stranger = new AnthropicBedrock({ ...options, apiKey: "sk-nobody-knows-me" });
  return {
    refused: await ask(REFUSED),
    throttled: await ask(THROTTLED),
    unknown: await ask("no-such-model"),
    stranger: await ask("my-claude", stranger),
    stream: await raised(() =>
      client.messages.create({ ...request(QUESTION, "no-such-model"), stream: true }),
    ),
  };
});

await step("broken_stream", async () => {
  const broken = { ...request(QUESTION, BROKEN), stream: true };
  return await events(await client.messages.create(broken));
});

await step("cancel", async () => {
  const asked = { ...request("Cancelled in mid-stream", SLOW), stream: true };
  const stream = await client.messages.create(asked);
  const types = [];
  for await (const event of stream) {
    types.push(event.type);
    if (types.length === 4) stream.controller.abort();
  }
  return types;
});

await step("parallel", async () => {
  const one = async (number) => {
    const asked = request(`Question ${number}`);
    if (number % 2) return (await client.messages.create(asked)).content[0].text;
    return (await client.messages.stream(asked).finalMessage()).content[0].text;
  };
  return await Promise.all([...Array(40).keys()].map(one));
});
