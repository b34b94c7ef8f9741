"""
LangChain: chat models for Converse and InvokeModel, embeddings, rerank, knowledge bases, agents.
"""

from __future__ import annotations

import os
from typing import Any

from models import (
    BROKEN,
    COHERE_EMBEDDINGS,
    EMBEDDINGS,
    REFUSED,
    THROTTLED,
    UNKNOWN,
)
from steps import KEY, PLAIN_URL, QUESTION, URL, described, raised, run, step

os.environ["AWS_MAX_ATTEMPTS"] = "1"

# docs: bearer
from langchain_aws import (
    AmazonKnowledgeBasesRetriever,
    BedrockEmbeddings,
    BedrockRerank,
    ChatBedrock,
    ChatBedrockConverse,
)

# docs: end
from langchain_aws.agents import BedrockAgentsRunnable
from langchain_core.documents import Document
from langchain_core.tools import tool
from pydantic import BaseModel, SecretStr

# docs: bearer
chat = ChatBedrockConverse(
    model="my-claude",
    provider="anthropic",
    base_url=f"{URL}/bedrock",
    api_key=KEY,
    region_name="us-west-2",
    disable_streaming=False,
)
# docs: end
SIGNED: dict[str, Any] = {
    "region_name": "us-west-2",
    "aws_access_key_id": SecretStr(KEY),
    "aws_secret_access_key": SecretStr("anything"),
    "endpoint_url": f"{PLAIN_URL}/bedrock",
}


def chat_with(model: str, **options: Any) -> Any:
    told = {"provider": "anthropic", "disable_streaming": False, **SIGNED, **options}
    return ChatBedrockConverse(model=model, **told)


@tool
def get_weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"It rains in {city} for {days} days."


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


@step
def converse() -> Any:
    # docs: call
    answer = chat.invoke(QUESTION)
    text = answer.content
    # docs: end
    return {"text": text, "usage": answer.usage_metadata}


@step
def stream() -> Any:
    chunks = list(chat.stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {"pieces": [chunk.text for chunk in chunks], "usage": whole.usage_metadata}


@step
async def asynchronous() -> Any:
    return [chunk.text async for chunk in chat.astream(QUESTION)]


@step
def signed() -> Any:
    return chat_with("my-claude").invoke(QUESTION).content


@step
def invoke_model() -> Any:
    """The older class, for InvokeModel in Claude's own format."""
    # docs: invoke
    chat = ChatBedrock(
        model="my-claude",
        base_model="anthropic.claude-sonnet-4-5-20250929-v1:0",
        provider="anthropic",
        endpoint_url=f"{PLAIN_URL}/bedrock",
        aws_access_key_id=KEY,
        aws_secret_access_key="anything",
        region_name="us-west-2",
        beta_use_converse_api=False,
    )
    # docs: end
    answer = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION))
    called = chat.bind_tools([get_weather]).invoke("Please call get_weather")
    return {
        "text": answer.content,
        "output": answer.usage_metadata["output_tokens"],
        "pieces": [chunk.text for chunk in chunks],
        "calls": called.tool_calls,
        "error": raised(
            ChatBedrock(
                model=REFUSED, provider="anthropic", beta_use_converse_api=False, **SIGNED
            ).invoke,
            QUESTION,
        ),
    }


@step
def tools() -> Any:
    ready = chat.bind_tools([get_weather])
    messages: list[Any] = [("user", "Please call get_weather")]
    first = ready.invoke(messages)
    (call,) = first.tool_calls
    messages += [first, get_weather.invoke(call)]
    second = ready.invoke(messages)
    streamed = list(ready.stream("Please call get_weather"))
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    return {
        "name": call["name"],
        "args": call["args"],
        "result": messages[-1].content,
        "then": second.content,
        "streamed": whole.tool_calls[0]["args"],
    }


@step
def structured() -> Any:
    return chat.with_structured_output(Weather).invoke(QUESTION).model_dump()


@step
def embeddings() -> Any:
    # docs: embeddings
    embeddings = BedrockEmbeddings(
        model_id="my-embeddings",
        provider="amazon",
        endpoint_url=f"{PLAIN_URL}/bedrock",
        aws_access_key_id=KEY,
        aws_secret_access_key="anything",
        region_name="us-west-2",
    )
    # docs: end
    cohere = BedrockEmbeddings(model_id=COHERE_EMBEDDINGS, provider="cohere", **SIGNED)
    titan_arguments = BedrockEmbeddings(
        model_id=EMBEDDINGS, provider="amazon", model_kwargs={"dimensions": 256}, **SIGNED
    )
    return {
        "titan": len(embeddings.embed_query(QUESTION)),
        "short": [len(vector) for vector in titan_arguments.embed_documents(["one", "two"])],
        "cohere": [len(vector) for vector in cohere.embed_documents(["one", "two", "three"])],
    }


@step
def rerank() -> Any:
    documents = [Document(page_content=text) for text in ("one", "two", "three")]
    # docs: rerank
    # base_url has no effect here, the variable has.
    os.environ["AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME"] = f"{PLAIN_URL}/bedrock"
    ranker = BedrockRerank(
        model_arn="arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0",
        aws_access_key_id=SecretStr(KEY),
        aws_secret_access_key=SecretStr("anything"),
        region_name="us-west-2",
        top_n=2,
    )
    # docs: end
    found = ranker.compress_documents(documents, QUESTION)
    return [[each.page_content, each.metadata["relevance_score"]] for each in found]


@step
def retriever() -> Any:
    retriever = AmazonKnowledgeBasesRetriever(
        knowledge_base_id="KNOWLEDGE1",
        retrieval_config={"vectorSearchConfiguration": {"numberOfResults": 1}},
        min_score_confidence=0.0,
        **SIGNED,
    )
    return [document.page_content for document in retriever.invoke(QUESTION)]


@step
def agent() -> Any:
    """It takes its credentials from the environment."""
    os.environ["AWS_ACCESS_KEY_ID"] = KEY
    os.environ["AWS_SECRET_ACCESS_KEY"] = "anything"
    agent = BedrockAgentsRunnable(
        agent_id="AGENTAGENT",
        agent_alias_id="ALIASALIAS",
        credentials_profile_name=None,
        region_name="us-west-2",
        endpoint_url=f"{PLAIN_URL}/bedrock",
    )
    found = agent.invoke({"input": QUESTION})
    found = found if isinstance(found, list) else [found]
    del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    return [type(each).__name__ for each in found]


@step
def errors() -> Any:
    found = {
        model: raised(chat_with(model).invoke, QUESTION) for model in (REFUSED, THROTTLED, UNKNOWN)
    }
    found["wrong key"] = raised(
        chat_with("my-claude", aws_access_key_id=SecretStr("sk-wrong")).invoke, QUESTION
    )
    return found


@step
def broken_stream() -> Any:
    pieces = []
    try:
        for chunk in chat_with(BROKEN).stream(QUESTION):
            pieces.append(chunk.text)
    except Exception as error:
        return {"pieces": pieces, "error": described(error)}


run()
