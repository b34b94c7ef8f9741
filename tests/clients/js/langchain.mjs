// LangChain for JavaScript, over the transport that TRANSPORT names: `h2`, which is what
// it does by itself, or `https1` by NodeHttpHandler.

import { BedrockRuntimeClient } from "@aws-sdk/client-bedrock-runtime";
import {
  AmazonKnowledgeBaseRetriever,
  BedrockEmbeddings,
  ChatBedrockConverse,
} from "@langchain/aws";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { NodeHttpHandler } from "@smithy/node-http-handler";

import {
  BROKEN,
  KEY,
  QUESTION,
  REFUSED,
  REGION,
  THROTTLED,
  URL,
  WEATHER,
  described,
  raised,
  step,
} from "./steps.mjs";

// docs: model
const client = new BedrockRuntimeClient({
  endpoint: `${URL}/bedrock`,
  region: "us-west-2",
  credentials: { accessKeyId: KEY, secretAccessKey: "anything" },
});
const model = new ChatBedrockConverse({ model: "my-claude", region: "us-west-2", client });
// docs: end

const isHttp1 = process.env.TRANSPORT === "https1";
const endpoint = `${URL}/bedrock`;
const credentials = { accessKeyId: KEY, secretAccessKey: "anything" };
const clientOptions = isHttp1 ? { requestHandler: new NodeHttpHandler() } : {};
const options = {
  region: REGION,
  client: isHttp1
    ? new BedrockRuntimeClient({ ...clientOptions, region: REGION, endpoint, credentials })
    : client,
  maxRetries: 0,
};
const claude = isHttp1 ? new ChatBedrockConverse({ model: "my-claude", ...options }) : model;
const chat = (name) => new ChatBedrockConverse({ model: name, ...options });

await step("message", async () => {
  const message = await claude.invoke(QUESTION);
  return { text: message.text, usage: message.usage_metadata };
});

await step("stream", async () => {
  const pieces = [];
  let usage;
  for await (const chunk of await claude.stream(QUESTION)) {
    pieces.push(chunk.text);
    usage ??= chunk.usage_metadata;
  }
  return { pieces, usage };
});

// Without a client of one's own; the host may have a path, but the scheme is https.
await step("bearer", async () => {
  const bearing = new ChatBedrockConverse({
    model: "my-claude",
    region: REGION,
    bedrockBearerToken: KEY,
    endpointHost: endpoint.slice("https://".length),
    clientOptions,
  });
  return (await bearing.invoke(QUESTION)).text;
});

await step("tools", async () => {
  const weather = tool(async () => "Sunny and warm", {
    name: "get_weather",
    description: "The weather of a city.",
    schema: WEATHER,
  });
  const able = claude.bindTools([weather]);
  const messages = [new HumanMessage("Please call get_weather for me.")];
  const first = await able.invoke(messages);
  const [call] = first.tool_calls;
  const content = await weather.invoke(call.args);
  const result = new ToolMessage({ content, tool_call_id: call.id });
  const second = await able.invoke([...messages, first, result]);
  let streamed;
  for await (const chunk of await able.stream(messages)) {
    streamed = streamed ? streamed.concat(chunk) : chunk;
  }
  return {
    name: call.name,
    args: call.args,
    streamed: streamed.tool_calls[0].args,
    text: second.text,
  };
});

// It forces a tool only if it knows the model by name, or is told that it can.
await step("structured", async () => {
  const forcing = new ChatBedrockConverse({
    model: "my-claude",
    ...options,
    supportsToolChoiceValues: ["auto", "any", "tool"],
  });
  const schema = {
    title: "person",
    type: "object",
    properties: { name: { type: "string" }, age: { type: "integer" } },
    required: ["name", "age"],
  };
  return await forcing.withStructuredOutput(schema).invoke("Who is there?");
});

await step("embeddings", async () => {
  const embeddings = new BedrockEmbeddings({ model: "my-embeddings", ...options });
  const documents = await embeddings.embedDocuments(["one", "two three"]);
  return [(await embeddings.embedQuery("one")).length, ...documents.map((each) => each.length)];
});

await step("retriever", async () => {
  const retriever = new AmazonKnowledgeBaseRetriever({
    knowledgeBaseId: "KNOWLEDGE1",
    topK: 2,
    region: REGION,
    clientOptions: { ...clientOptions, endpoint, credentials },
  });
  return (await retriever.invoke(QUESTION)).map((document) => document.pageContent);
});

await step("errors", async () => ({
  refused: await raised(() => chat(REFUSED).invoke(QUESTION)),
  throttled: await raised(() => chat(THROTTLED).invoke(QUESTION)),
  unknown: await raised(() => chat("no-such-model").invoke(QUESTION)),
}));

await step("broken_stream", async () => {
  const pieces = [];
  try {
    for await (const chunk of await chat(BROKEN).stream(QUESTION)) pieces.push(chunk.text);
  } catch (error) {
    return { pieces, error: described(error) };
  }
  return { pieces };
});

await step("parallel", async () => {
  const questions = [...Array(30).keys()].map((number) => `Question ${number}`);
  return (await claude.batch(questions)).map((message) => message.text);
});
