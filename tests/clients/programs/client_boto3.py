"""
boto3: bearer over TLS, the key as access key id, and an AWS-style pair.

Runs with old versions too, which know neither bearer tokens nor all operations.
"""

from __future__ import annotations

import json
import os
from typing import Any

import boto3
import botocore
from models import (
    BROKEN,
    CLAUDE,
    COHERE_EMBEDDINGS,
    EMBEDDINGS,
    NOVA,
    REFUSED,
    RERANK_ARN,
    THROTTLED,
    UNKNOWN,
    WEATHER,
)
from steps import KEY, PLAIN_URL, QUESTION, URL, described, raised, run, step

ACCESS_KEY_ID, SECRET_ACCESS_KEY = os.environ["ACCESS_KEY_ID"], os.environ["SECRET_ACCESS_KEY"]
MESSAGES = [{"role": "user", "content": [{"text": QUESTION}]}]
HAS_BEARER = tuple(map(int, botocore.__version__.split(".")[:2])) >= (1, 39)

os.environ["AWS_MAX_ATTEMPTS"] = "1"


def signed(service: str = "bedrock-runtime") -> Any:
    # docs: signed
    client = boto3.client(
        service,  # bedrock-runtime, bedrock-agent-runtime, bedrock, ...
        endpoint_url=f"{PLAIN_URL}/bedrock",
        region_name="us-west-2",
        aws_access_key_id=KEY,
        aws_secret_access_key="anything",
    )
    # docs: end
    return client


def bearer(url: str = URL) -> Any:
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = KEY
    return boto3.client("bedrock-runtime", endpoint_url=f"{url}/bedrock", region_name="us-west-2")


client = signed()
agents = signed("bedrock-agent-runtime")


@step
def converse() -> Any:
    # docs: call
    answer = client.converse(modelId="my-claude", messages=MESSAGES)
    text = answer["output"]["message"]["content"][0]["text"]
    # docs: end
    usage = answer["usage"]
    return {
        "text": text,
        "input": usage["inputTokens"],
        "output": usage["outputTokens"],
        "stop": answer["stopReason"],
    }


@step
def stream() -> Any:
    pieces = []
    # docs: stream
    answer = client.converse_stream(modelId="my-claude", messages=MESSAGES)
    for event in answer["stream"]:
        if "contentBlockDelta" in event:
            pieces.append(event["contentBlockDelta"]["delta"]["text"])
        # docs: end
        last = event
    return {"pieces": pieces, "output": last["metadata"]["usage"]["outputTokens"]}


@step
def bearer_tls() -> Any:
    # docs: bearer
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = KEY
    client = boto3.client(
        "bedrock-runtime", endpoint_url=f"{URL}/bedrock", region_name="us-west-2"
    )
    # docs: end
    answer = client.converse(modelId=NOVA, messages=MESSAGES)
    events = list(client.converse_stream(modelId=NOVA, messages=MESSAGES)["stream"])
    return {
        "text": answer["output"]["message"]["content"][0]["text"],
        "events": [next(iter(event)) for event in events],
    }


@step
def bearer_plain() -> Any:
    return raised(bearer(PLAIN_URL).converse, modelId=NOVA, messages=MESSAGES)


@step
def pair() -> Any:
    del os.environ["AWS_BEARER_TOKEN_BEDROCK"]
    # docs: pair
    client = boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{URL}/bedrock",
        region_name="us-west-2",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    # docs: end
    over_http = boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{PLAIN_URL}/bedrock",
        region_name="us-west-2",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    texts = []
    for each in (client, over_http):
        answer = each.converse(modelId=CLAUDE, messages=MESSAGES)
        texts.append(answer["output"]["message"]["content"][0]["text"])
    wrong = boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{URL}/bedrock",
        region_name="us-west-2",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key="not the secret",
    )
    return {"texts": texts, "wrong": raised(wrong.converse, modelId=CLAUDE, messages=MESSAGES)}


@step
def invoke() -> Any:
    body = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    told = {"modelId": CLAUDE, "body": json.dumps(body)}
    answer = client.invoke_model(**told)
    stream = client.invoke_model_with_response_stream(**told)
    events = [json.loads(event["chunk"]["bytes"]) for event in stream["body"]]
    whole = json.loads(answer["body"].read())
    return {
        "type": answer["contentType"],
        "text": whole["content"][0]["text"],
        "usage": whole["usage"],
        "pieces": [event["delta"]["text"] for event in events if "text" in event.get("delta", ())],
        "events": [event["type"] for event in events],
        "metrics": events[-1]["amazon-bedrock-invocationMetrics"],
    }


@step
def tools() -> Any:
    messages: list[Any] = [{"role": "user", "content": [{"text": "Please call get_weather"}]}]
    config = {
        "tools": [{"toolSpec": {"name": "get_weather", "inputSchema": {"json": WEATHER}}}],
    }
    told = {"modelId": CLAUDE, "toolConfig": config}
    first = client.converse(messages=messages, **told)
    streamed = list(client.converse_stream(messages=messages, **told)["stream"])
    deltas = [event["contentBlockDelta"] for event in streamed if "contentBlockDelta" in event]
    message = first["output"]["message"]
    use = message["content"][0]["toolUse"]
    result = {"toolUseId": use["toolUseId"], "content": [{"text": "It rains."}]}
    messages += [message, {"role": "user", "content": [{"toolResult": result}]}]
    second = client.converse(messages=messages, **told)
    return {
        "stop": first["stopReason"],
        "name": use["name"],
        "input": use["input"],
        "streamed": "".join(delta["delta"]["toolUse"]["input"] for delta in deltas),
        "then": second["stopReason"],
    }


@step
def embeddings() -> Any:
    def ask(model: str, **body: Any) -> Any:
        answer = client.invoke_model(modelId=model, body=json.dumps(body))
        return json.loads(answer["body"].read())

    titan = ask(EMBEDDINGS, inputText=QUESTION, dimensions=256)
    cohere = ask(COHERE_EMBEDDINGS, texts=[QUESTION, "What?"], input_type="search_query")
    return {
        "titan": len(titan["embedding"]),
        "tokens": titan["inputTextTokenCount"],
        "cohere": [len(vector) for vector in cohere["embeddings"]],
    }


@step
def invoke_agent() -> Any:
    answer = agents.invoke_agent(
        agentId="AGENTAGENT", agentAliasId="ALIASALIAS", sessionId="session-1", inputText=QUESTION
    )
    events = list(answer["completion"])
    (text,) = (event["chunk"]["bytes"] for event in events if "chunk" in event)
    return {"text": text, "session": answer["sessionId"], "kinds": [next(iter(e)) for e in events]}


@step
def retrieve() -> Any:
    answer = agents.retrieve(knowledgeBaseId="KNOWLEDGE1", retrievalQuery={"text": QUESTION})
    return [result["content"]["text"] for result in answer["retrievalResults"]]


@step
def rerank() -> Any:
    texts = ["one", "two", "three"]
    model = {"modelConfiguration": {"modelArn": RERANK_ARN}}
    answer = agents.rerank(
        queries=[{"type": "TEXT", "textQuery": {"text": QUESTION}}],
        sources=[
            {
                "type": "INLINE",
                "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": text}},
            }
            for text in texts
        ],
        rerankingConfiguration={
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": model,
        },
    )
    return [[result["index"], result["relevanceScore"]] for result in answer["results"]]


@step
def errors() -> Any:
    found = {}
    for model in (REFUSED, THROTTLED, BROKEN, UNKNOWN):
        for name in ("converse", "converse_stream"):
            if (model, name) != (BROKEN, "converse_stream"):
                call = getattr(client, name)
                found[f"{name} {model}"] = raised(call, modelId=model, messages=MESSAGES)
    return found


@step
def typed_error() -> Any:
    # docs: error
    try:
        client.converse(modelId="no-such-model", messages=MESSAGES)
    except client.exceptions.ResourceNotFoundException as error:
        message = error.response["Error"]["Message"]
        # docs: end
        return message


@step
def broken_stream() -> Any:
    events = []
    try:
        for event in client.converse_stream(modelId=BROKEN, messages=MESSAGES)["stream"]:
            events.append(next(iter(event)))
    except Exception as error:
        return {"events": events, "error": described(error)}


@step
def wrong_key() -> Any:
    found = {}
    for service, call in (
        ("bedrock-runtime", lambda it: it.converse(modelId=CLAUDE, messages=MESSAGES)),
        ("bedrock-agent-runtime", lambda it: it.list_sessions()),
        ("bedrock", lambda it: it.list_foundation_models()),
    ):
        stranger = boto3.client(
            service,
            endpoint_url=f"{URL}/bedrock",
            region_name="us-west-2",
            aws_access_key_id="sk-wrong",
            aws_secret_access_key="sk-wrong",
        )
        if service != "bedrock-agent-runtime" or hasattr(stranger, "list_sessions"):
            found[service] = raised(call, stranger)
    return found


run()
