// The AWS SDK for JavaScript, over the transport that TRANSPORT names: its own HTTP/2
// (`h2` by TLS's ALPN, `h2c` by prior knowledge) or `https1` and `http1` by NodeHttpHandler.

import http2 from "node:http2";

import {
  BedrockClient,
  CreateGuardrailCommand,
  GetInferenceProfileCommand,
  ListFoundationModelsCommand,
  paginateListInferenceProfiles,
} from "@aws-sdk/client-bedrock";
import {
  BedrockAgentRuntimeClient,
  InvokeAgentCommand,
  RerankCommand,
  RetrieveAndGenerateCommand,
  RetrieveAndGenerateStreamCommand,
  RetrieveCommand,
} from "@aws-sdk/client-bedrock-agent-runtime";
import {
  ApplyGuardrailCommand,
  BedrockRuntimeClient,
  ConverseCommand,
  ConverseStreamCommand,
  CountTokensCommand,
  InvokeModelCommand,
  InvokeModelWithBidirectionalStreamCommand,
  InvokeModelWithResponseStreamCommand,
} from "@aws-sdk/client-bedrock-runtime";
import { NodeHttp2Handler, NodeHttpHandler } from "@smithy/node-http-handler";

import {
  ACCESS_KEY_ID,
  BROKEN,
  KEY,
  PLAIN_URL,
  QUESTION,
  REFUSED,
  REGION,
  SECRET_ACCESS_KEY,
  SLOW,
  THROTTLED,
  URL,
  WEATHER,
  anthropicBody,
  described,
  raised,
  step,
} from "./steps.mjs";

const { TRANSPORT } = process.env;
const isPlain = TRANSPORT === "http1" || TRANSPORT === "h2c";
const isHttp1 = TRANSPORT === "http1" || TRANSPORT === "https1";
const endpoint = `${isPlain ? PLAIN_URL : URL}/bedrock`;

/** What all clients are made with: the key is the access key id, the secret is anything. */
const options = {
  endpoint,
  region: REGION,
  credentials: { accessKeyId: KEY, secretAccessKey: "anything" },
  ...(isHttp1 && { requestHandler: new NodeHttpHandler() }),
};
const runtime = new BedrockRuntimeClient(options);
const agents = new BedrockAgentRuntimeClient(options);

const said = (text) => [{ role: "user", content: [{ text }] }];
const messages = said(QUESTION);
const text = (answer) => answer.output.message.content[0].text;
const parsed = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

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

await step("transport", async () => runtime.config.requestHandler.constructor.name);

await step("signed", async () => {
  // docs: signed
  const bedrock = new BedrockRuntimeClient({
    endpoint: `${URL}/bedrock`,
    region: "us-west-2",
    credentials: { accessKeyId: KEY, secretAccessKey: "anything" },
  });
  // docs: end
  const client = isPlain || isHttp1 ? runtime : bedrock;
  return await client.send(new ConverseCommand({ modelId: "my-claude", messages }));
});

await step("bearer", async () => {
  process.env.AWS_BEARER_TOKEN_BEDROCK = KEY;
  try {
    const { credentials, ...others } = options;
    const client = new BedrockRuntimeClient(others);
    return text(await client.send(new ConverseCommand({ modelId: "my-claude", messages })));
  } finally {
    delete process.env.AWS_BEARER_TOKEN_BEDROCK;
  }
});

await step("token", async () => {
  const { credentials, ...others } = options;
  const client = new BedrockRuntimeClient({
    ...others,
    token: { token: KEY },
    authSchemePreference: ["httpBearerAuth"],
  });
  return text(await client.send(new ConverseCommand({ modelId: "my-claude", messages })));
});

await step("pair", async () => {
  const credentials = { accessKeyId: ACCESS_KEY_ID, secretAccessKey: SECRET_ACCESS_KEY };
  const client = new BedrockRuntimeClient({ ...options, credentials });
  const { stream } = await client.send(
    new ConverseStreamCommand({ modelId: "my-claude", messages }),
  );
  const wrong = new BedrockRuntimeClient({
    ...options,
    credentials: { ...credentials, secretAccessKey: "anything" },
  });
  return {
    answer: text(await client.send(new ConverseCommand({ modelId: "my-claude", messages }))),
    stream: await events(stream),
    wrong: await raised(() => wrong.send(new ConverseCommand({ modelId: "my-claude", messages }))),
  };
});

await step("stream", async () => {
  const answer = await runtime.send(new ConverseStreamCommand({ modelId: "my-claude", messages }));
  return await events(answer.stream);
});

await step("ids", async () => {
  const names = [
    "my-claude",
    "us.amazon.nova-lite-v1:0",
    "arn:aws:bedrock:us-west-2::foundation-model/amazon.nova-lite-v1:0",
    "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3d4e5f6",
  ];
  const found = [];
  for (const modelId of names) {
    found.push(text(await runtime.send(new ConverseCommand({ modelId, messages }))));
  }
  return found;
});

await step("invoke", async () => {
  const input = { modelId: "my-claude", contentType: "application/json", body: anthropicBody() };
  const whole = await runtime.send(new InvokeModelCommand(input));
  const streamed = await runtime.send(new InvokeModelWithResponseStreamCommand(input));
  const { events: chunks, error } = await events(streamed.body);
  return {
    contentType: whole.contentType,
    answer: parsed(whole.body),
    streamContentType: streamed.contentType,
    chunks: chunks.map((event) => parsed(event.chunk.bytes)),
    error,
  };
});

const toolConfig = {
  tools: [
    {
      toolSpec: {
        name: "get_weather",
        description: "The weather of a city.",
        inputSchema: { json: WEATHER },
      },
    },
  ],
};

await step("tools", async () => {
  const asked = said("Please call get_weather for me.");
  const input = { modelId: "my-claude", messages: asked, toolConfig };
  const first = await runtime.send(new ConverseCommand(input));
  const streamed = await runtime.send(new ConverseStreamCommand(input));
  const used = first.output.message.content[0].toolUse;
  const result = {
    toolResult: { toolUseId: used.toolUseId, content: [{ text: "Sunny and warm" }] },
  };
  const second = await runtime.send(
    new ConverseCommand({
      ...input,
      messages: [...asked, first.output.message, { role: "user", content: [result] }],
    }),
  );
  return {
    stopReason: first.stopReason,
    used,
    streamed: await events(streamed.stream),
    answer: text(second),
  };
});

await step("embeddings", async () => {
  const titan = await runtime.send(
    new InvokeModelCommand({
      modelId: "my-embeddings",
      body: JSON.stringify({ inputText: "one two three", dimensions: 256 }),
    }),
  );
  const cohere = await runtime.send(
    new InvokeModelCommand({
      modelId: "my-cohere-embeddings",
      body: JSON.stringify({ texts: ["one", "two three"], input_type: "search_document" }),
    }),
  );
  return {
    titan: parsed(titan.body).embedding.length,
    cohere: parsed(cohere.body).embeddings.map((each) => each.length),
  };
});

await step("others", async () => {
  const counted = await runtime.send(
    new CountTokensCommand({ modelId: "my-claude", input: { converse: { messages } } }),
  );
  const guarded = await runtime.send(
    new ApplyGuardrailCommand({
      guardrailIdentifier: "abcdefgh",
      guardrailVersion: "1",
      source: "INPUT",
      content: [{ text: { text: QUESTION } }],
    }),
  );
  return { inputTokens: counted.inputTokens, action: guarded.action };
});

// Bigger than HTTP/2's windows are at first, so that they have to be opened again.
await step("upload", async () => {
  const image = { format: "png", source: { bytes: new Uint8Array(3_000_000).fill(7) } };
  const content = [{ image }, { text: QUESTION }];
  return await runtime.send(
    new ConverseCommand({ modelId: "my-claude", messages: [{ role: "user", content }] }),
  );
});

await step("agents", async () => {
  const agent = await agents.send(
    new InvokeAgentCommand({
      agentId: "AGENTAGENT",
      agentAliasId: "ALIASALIAS",
      sessionId: "session-1",
      inputText: QUESTION,
    }),
  );
  const retrieved = await agents.send(
    new RetrieveCommand({ knowledgeBaseId: "KNOWLEDGE1", retrievalQuery: { text: QUESTION } }),
  );
  const modelArn = "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0";
  const reranked = await agents.send(
    new RerankCommand({
      queries: [{ type: "TEXT", textQuery: { text: QUESTION } }],
      sources: ["nobody", "somebody"].map((each) => ({
        type: "INLINE",
        inlineDocumentSource: { type: "TEXT", textDocument: { text: each } },
      })),
      rerankingConfiguration: {
        type: "BEDROCK_RERANKING_MODEL",
        bedrockRerankingConfiguration: { modelConfiguration: { modelArn } },
      },
    }),
  );
  const generation = {
    input: { text: QUESTION },
    retrieveAndGenerateConfiguration: {
      type: "KNOWLEDGE_BASE",
      knowledgeBaseConfiguration: { knowledgeBaseId: "KNOWLEDGE1", modelArn },
    },
  };
  const generated = await agents.send(new RetrieveAndGenerateCommand(generation));
  const streamed = await agents.send(new RetrieveAndGenerateStreamCommand(generation));
  const completion = await events(agent.completion);
  return {
    sessionId: agent.sessionId,
    completion: completion.events.map((event) => Object.keys(event)[0]),
    chunk: new TextDecoder().decode(completion.events.find((event) => event.chunk).chunk.bytes),
    completionError: completion.error,
    retrieved: retrieved.retrievalResults,
    reranked: reranked.results,
    generated: generated.output.text,
    streamed: await events(streamed.stream),
  };
});

// The control plane; HTTP/1.1 whatever the transport, which is how its client is made.
await step("control", async () => {
  const { requestHandler, ...others } = options;
  const client = new BedrockClient(others);
  const listed = await client.send(new ListFoundationModelsCommand({ byProvider: "a b/c" }));
  const profile = await client.send(
    new GetInferenceProfileCommand({
      inferenceProfileIdentifier:
        "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3d4e5f6",
    }),
  );
  let pages = 0;
  for await (const page of paginateListInferenceProfiles({ client }, {})) {
    pages += page.inferenceProfileSummaries.length ? 1 : 0;
  }
  const guardrail = new CreateGuardrailCommand({
    name: "mine",
    blockedInputMessaging: "no",
    blockedOutputsMessaging: "no",
  });
  return {
    models: listed.modelSummaries.length,
    profile: profile.inferenceProfileArn,
    pages,
    forbidden: await raised(() => client.send(guardrail)),
  };
});

await step("errors", async () => {
  const converse = (modelId) => () => runtime.send(new ConverseCommand({ modelId, messages }));
  const strangers = { accessKeyId: "sk-nobody-knows-me", secretAccessKey: "anything" };
  const stranger = new BedrockRuntimeClient({ ...options, credentials: strangers });
  const agentStranger = new BedrockAgentRuntimeClient({ ...options, credentials: strangers });
  const retrieve = new RetrieveCommand({
    knowledgeBaseId: "KNOWLEDGE1",
    retrievalQuery: { text: QUESTION },
  });
  const elsewhere = new BedrockRuntimeClient({ ...options, endpoint: `${endpoint}/nowhere` });
  return {
    refused: await raised(converse(REFUSED)),
    throttled: await raised(converse(THROTTLED)),
    unknown: await raised(converse("no-such-model")),
    stranger: await raised(() =>
      stranger.send(new ConverseCommand({ modelId: "my-claude", messages })),
    ),
    streamStranger: await raised(() =>
      stranger.send(new ConverseStreamCommand({ modelId: "my-claude", messages })),
    ),
    agentStranger: await raised(() => agentStranger.send(retrieve)),
    elsewhere: await raised(() =>
      elsewhere.send(new ConverseCommand({ modelId: "my-claude", messages })),
    ),
  };
});

await step("broken_streams", async () => {
  const modelId = BROKEN;
  const converse = await runtime.send(new ConverseStreamCommand({ modelId, messages }));
  const invoke = await runtime.send(
    new InvokeModelWithResponseStreamCommand({ modelId, body: anthropicBody() }),
  );
  const { events: chunks, error } = await events(invoke.body);
  return {
    converse: await events(converse.stream),
    invoke: { events: chunks.map((event) => parsed(event.chunk.bytes)), error },
  };
});

/** A client whose requests come with a header that asks the sandbox for a fault. */
function spoiled(fault) {
  const client = new BedrockRuntimeClient(options);
  client.middlewareStack.add(
    (next) => async (args) => {
      args.request.headers["x-sandbox-fault"] = fault;
      return await next(args);
    },
    { step: "build" },
  );
  return client;
}

// What Bedrock does not end well must not seem whole.
await step("cut_streams", async () => {
  const cut = async (fault) => {
    const command = new ConverseStreamCommand({ modelId: "my-claude", messages });
    const { stream } = await spoiled(fault).send(command);
    const { events: found, error } = await events(stream);
    return { events: found.length, error };
  };
  return {
    inside: await cut("drop;at=frame;after=5"),
    between: await cut("drop;at=body;after=5"),
    ended: await cut("close;at=frame;after=5"),
  };
});

// More than all windows and buffers on the way hold.
await step("long_stream", async () => {
  const command = new ConverseStreamCommand({ modelId: "my-claude", messages });
  const { stream } = await spoiled("flood;megabytes=12;frame_bytes=9000").send(command);
  let characters = 0;
  let last;
  for await (const event of stream) {
    characters += event.contentBlockDelta?.delta.text.length ?? 0;
    last = event;
  }
  return { characters, last: Object.keys(last)[0] };
});

await step("paced", async () => {
  const modelId = SLOW;
  const { stream } = await runtime.send(new ConverseStreamCommand({ modelId, messages }));
  const arrivals = [];
  for await (const event of stream) {
    if (event.contentBlockDelta) arrivals.push(performance.now());
  }
  return arrivals.slice(1).map((at, index) => at - arrivals[index]);
});

await step("cancel", async () => {
  const modelId = SLOW;
  const controller = new AbortController();
  const { stream, $metadata } = await runtime.send(
    new ConverseStreamCommand({ modelId, messages: said("Cancelled in mid-stream") }),
    { abortSignal: controller.signal },
  );
  const found = [];
  let error;
  try {
    for await (const event of stream) {
      found.push(Object.keys(event)[0]);
      if (found.length === 3) controller.abort();
    }
  } catch (thrown) {
    error = described(thrown);
  }
  return { events: found, error, requestId: $metadata.requestId };
});

await step("cancel_early", async () => {
  const modelId = SLOW;
  const controller = new AbortController();
  const sent = raised(() =>
    runtime.send(new ConverseCommand({ modelId, messages: said("Cancelled early") }), {
      abortSignal: controller.signal,
    }),
  );
  setTimeout(() => controller.abort(), 200);
  return await sent;
});

await step("parallel", async () => {
  const one = async (number) => {
    const input = { modelId: "my-claude", messages: said(`Question ${number}`) };
    if (number % 2) return text(await runtime.send(new ConverseCommand(input)));
    const { stream } = await runtime.send(new ConverseStreamCommand(input));
    const { events: found, error } = await events(stream);
    if (error) return error;
    return found.map((event) => event.contentBlockDelta?.delta.text ?? "").join("");
  };
  return await Promise.all([...Array(60).keys()].map(one));
});

// By itself the SDK opens a connection for each request. Where many are on one, a stream
// that is aborted leaves the others alone.
await step("shared_connections", async () => {
  if (isHttp1) return null;
  let connections = 0;
  const { connect } = http2;
  http2.connect = (...argv) => {
    connections += 1;
    return connect(...argv);
  };
  const requestHandler = new NodeHttp2Handler({ disableConcurrentStreams: false });
  const client = new BedrockRuntimeClient({ ...options, requestHandler });
  const slow = async (controller) => {
    const command = new ConverseStreamCommand({ modelId: SLOW, messages });
    const { stream } = await client.send(command, { abortSignal: controller?.signal });
    let count = 0;
    for await (const _ of stream) {
      count += 1;
      if (count === 3) controller?.abort();
    }
    return count;
  };
  const streams = Promise.all([slow(new AbortController()), slow()]);
  const answers = [...Array(50).keys()].map(async (number) => {
    const input = { modelId: "my-claude", messages: said(`Question ${number}`) };
    return text(await client.send(new ConverseCommand(input)));
  });
  return { answers: await Promise.all(answers), streams: await streams, connections };
});

await step("bidirectional", async () => {
  async function* body() {
    const event = { event: { sessionStart: {} } };
    yield { chunk: { bytes: new TextEncoder().encode(JSON.stringify(event)) } };
  }
  const command = () =>
    new InvokeModelWithBidirectionalStreamCommand({
      modelId: "amazon.nova-sonic-v1:0",
      body: body(),
    });
  return await raised(async () => {
    const answer = await runtime.send(command());
    const { events: found, error } = await events(answer.body);
    if (error) throw error;
    return found;
  });
});

// Of a stream that ends with an exception the SDK does not read the end. Over HTTP/1.1 the
// connection then keeps this program until the gateway closes it.
process.exit();
