# The AWS CLI, version 1 or 2. URL, PLAIN_URL and KEY are in the environment.

MESSAGES='[{"role": "user", "content": [{"text": "Who are you really?"}]}]'
export AWS_MAX_ATTEMPTS=1

_signed() {
    # docs: signed
    export AWS_ACCESS_KEY_ID=$KEY AWS_SECRET_ACCESS_KEY=anything AWS_DEFAULT_REGION=us-west-2
    export AWS_ENDPOINT_URL_BEDROCK_RUNTIME=$PLAIN_URL/bedrock
    export AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME=$PLAIN_URL/bedrock
    export AWS_ENDPOINT_URL_BEDROCK=$PLAIN_URL/bedrock
    # docs: end
}

_bearer() {
    # docs: bearer
    export AWS_BEARER_TOKEN_BEDROCK=$KEY AWS_DEFAULT_REGION=us-west-2
    export AWS_ENDPOINT_URL_BEDROCK_RUNTIME=$URL/bedrock
    # docs: end
}

converse() {
    _signed
    # docs: call
    aws bedrock-runtime converse --model-id my-claude --messages "$MESSAGES"
    # docs: end
}

bearer() {
    _bearer
    aws bedrock-runtime converse --model-id my-claude --messages "$MESSAGES" \
        --query output.message.content[0].text --output text
}

pair() {
    _signed
    export AWS_ACCESS_KEY_ID=$ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY=$SECRET_ACCESS_KEY
    aws bedrock-runtime converse --model-id my-claude --messages "$MESSAGES" \
        --query output.message.content[0].text --output text
}

converse_stream() {
    # Version 1 has no such command, since its output cannot be streamed.
    _signed
    aws bedrock-runtime converse-stream --model-id my-claude --messages "$MESSAGES"
}

invoke() {
    _signed
    out=$(mktemp)
    aws bedrock-runtime invoke-model --model-id my-claude "$out" --content-type application/json \
        --body '{"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [
            {"role": "user", "content": "Who are you really?"}]}' >&2
    cat "$out"
}

tools() {
    _signed
    aws bedrock-runtime converse --model-id my-claude \
        --messages '[{"role": "user", "content": [{"text": "Please call get_weather"}]}]' \
        --tool-config '{"tools": [{"toolSpec": {"name": "get_weather", "inputSchema": {"json": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
        }}}}]}' --query output.message.content[0].toolUse
}

embeddings() {
    _signed
    out=$(mktemp)
    aws bedrock-runtime invoke-model --model-id my-embeddings "$out" \
        --body '{"inputText": "Who are you really?", "dimensions": 256}' >&2
    cat "$out"
}

retrieve() {
    _signed
    aws bedrock-agent-runtime retrieve --knowledge-base-id KNOWLEDGE1 \
        --retrieval-query text=Who? --query retrievalResults[0].content.text --output text
}

rerank() {
    _signed
    aws bedrock-agent-runtime rerank \
        --queries '[{"type": "TEXT", "textQuery": {"text": "Who?"}}]' \
        --sources '[{"type": "INLINE", "inlineDocumentSource": {"type": "TEXT", "textDocument":
            {"text": "one"}}}, {"type": "INLINE", "inlineDocumentSource": {"type": "TEXT",
            "textDocument": {"text": "two"}}}]' \
        --reranking-configuration '{"type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": {"modelConfiguration": {"modelArn":
            "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0"}}}' \
        --query 'results[].relevanceScore'
}

list_models() {
    _signed
    aws bedrock list-foundation-models --query modelSummaries[].modelId
}

refused() {
    _signed
    aws bedrock-runtime converse --model-id anthropic.claude-3-haiku-20240307-v1:0 \
        --messages "$MESSAGES"
}

throttled() {
    _signed
    aws bedrock-runtime converse --model-id anthropic.claude-3-sonnet-20240229-v1:0 \
        --messages "$MESSAGES"
}

unknown() {
    _signed
    aws bedrock-runtime converse --model-id no-such-model --messages "$MESSAGES"
}

wrong_key() {
    _signed
    export AWS_ACCESS_KEY_ID=sk-wrong
    aws bedrock-runtime converse --model-id my-claude --messages "$MESSAGES"
}
