# curl. URL, PLAIN_URL and KEY are in the environment.

BODY='{"messages": [{"role": "user", "content": [{"text": "Who are you really?"}]}]}'

bearer() {
    # docs: bearer
    curl -s "$URL/bedrock/model/my-claude/converse" -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" -d "$BODY"
    # docs: end
}

bearer_plain() {
    curl -s "$PLAIN_URL/bedrock/model/my-claude/converse" -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" -d "$BODY"
}

signed() {
    # docs: signed
    curl -s "$PLAIN_URL/bedrock/model/my-claude/converse" --user "$KEY:anything" \
        --aws-sigv4 aws:amz:us-west-2:bedrock -H "Content-Type: application/json" -d "$BODY"
    # docs: end
}

pair() {
    curl -s "$URL/bedrock/model/my-claude/converse" --user "$ACCESS_KEY_ID:$SECRET_ACCESS_KEY" \
        --aws-sigv4 aws:amz:us-west-2:bedrock -H "Content-Type: application/json" -d "$BODY"
}

wrong_secret() {
    curl -si "$URL/bedrock/model/my-claude/converse" --user "$ACCESS_KEY_ID:another" \
        --aws-sigv4 aws:amz:us-west-2:bedrock -H "Content-Type: application/json" -d "$BODY"
}

api_key() {
    curl -s "$URL/bedrock/model/my-claude/converse" -H "x-api-key: $KEY" -d "$BODY"
}

stream() {
    # docs: stream
    curl -sN "$URL/bedrock/model/my-claude/converse-stream" -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" -d "$BODY"
    # docs: end
}

slow_stream() {
    curl -sN "$URL/bedrock/model/anthropic.claude-3-opus-20240229-v1:0/converse-stream" \
        -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d "$BODY"
}

_version() {
    curl -s "$@" -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d "$BODY" \
        -o /dev/null -w '%{http_version} %{http_code} '
}

versions() {
    _version --http1.1 "$URL/bedrock/model/my-claude/converse"
    _version --http2 "$URL/bedrock/model/my-claude/converse"
    _version --http1.1 "$PLAIN_URL/bedrock/model/my-claude/converse"
    _version --http2-prior-knowledge "$PLAIN_URL/bedrock/model/my-claude/converse"
}

stream_http1() {
    curl -sN --http1.1 "$URL/bedrock/model/my-claude/converse-stream" \
        -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d "$BODY"
}

stream_h2c() {
    curl -sN --http2-prior-knowledge "$PLAIN_URL/bedrock/model/my-claude/converse-stream" \
        -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" -d "$BODY"
}

raw_colon() {
    curl -s "$URL/bedrock/model/anthropic.claude-haiku-4-5-20251001-v1:0/converse" \
        -H "Authorization: Bearer $KEY" -d "$BODY"
}

escaped_colon() {
    curl -s "$URL/bedrock/model/anthropic.claude-haiku-4-5-20251001-v1%3A0/converse" \
        -H "Authorization: Bearer $KEY" -d "$BODY"
}

_large() {
    { printf '{"messages": [{"role": "user", "content": [{"text": "'
      head -c 2000000 /dev/zero | tr '\0' x
      printf '"}]}]}'
    } | curl -sv "$@" "$URL/bedrock/model/my-claude/converse" -H "Authorization: Bearer $KEY" \
        -H "Content-Type: application/json" --data-binary @-
}

large() {
    _large --http2
}

# Above 1 MB curl asks first, in HTTP/1.1.
large_http1() {
    _large --http1.1
}

chunked() {
    printf %s "$BODY" | curl -s "$URL/bedrock/model/my-claude/converse" -X POST -T - \
        -H "Authorization: Bearer $KEY" -H "Content-Type: application/json"
}

tools() {
    curl -s "$URL/bedrock/model/my-claude/converse" -H "Authorization: Bearer $KEY" \
        -d '{"messages": [{"role": "user", "content": [{"text": "Please call get_weather"}]}],
            "toolConfig": {"tools": [{"toolSpec": {"name": "get_weather", "inputSchema": {"json": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
            }}}}]}}'
}

embeddings() {
    curl -s "$URL/bedrock/model/my-embeddings/invoke" -H "Authorization: Bearer $KEY" \
        -d '{"inputText": "Who are you really?", "dimensions": 256}'
}

retrieve() {
    curl -s "$URL/bedrock/knowledgebases/KNOWLEDGE1/retrieve" -H "Authorization: Bearer $KEY" \
        -d '{"retrievalQuery": {"text": "Who?"}}'
}

agent() {
    curl -sN "$URL/bedrock/agents/AGENTAGENT/agentAliases/ALIASALIAS/sessions/session-1/text" \
        -H "Authorization: Bearer $KEY" -d '{"inputText": "Who are you really?"}'
}

refused() {
    curl -si "$URL/bedrock/model/anthropic.claude-3-haiku-20240307-v1:0/converse" \
        -H "Authorization: Bearer $KEY" -d "$BODY"
}

throttled() {
    curl -si "$URL/bedrock/model/anthropic.claude-3-sonnet-20240229-v1:0/converse" \
        -H "Authorization: Bearer $KEY" -d "$BODY"
}

unknown() {
    curl -si "$URL/bedrock/model/no-such-model/converse" -H "Authorization: Bearer $KEY" -d "$BODY"
}

wrong_key() {
    curl -si "$URL/bedrock/model/my-claude/converse" -H "Authorization: Bearer sk-wrong" -d "$BODY"
}

no_key() {
    curl -si "$URL/bedrock/model/my-claude/converse" -d "$BODY"
}

broken_stream() {
    curl -sN "$URL/bedrock/model/anthropic.claude-3-5-sonnet-20240620-v1:0/converse-stream" \
        -H "Authorization: Bearer $KEY" -d "$BODY"
}
