# Claude Code on Bedrock behind the gateway. What follows the script's name are further
# options for it; `claude` is on the PATH.

# docs: environment
export CLAUDE_CODE_USE_BEDROCK=1 AWS_REGION=us-west-2
export ANTHROPIC_BEDROCK_BASE_URL=$URL/bedrock
export AWS_BEARER_TOKEN_BEDROCK=$KEY
claude -p "Who are you really?"
# docs: end
