"""
The keys of LiteLLM's ``config.yaml`` that are known and do nothing here.

Each has its type, so that a value that LiteLLM would refuse is refused here
too. Keys that do something are asked for by :mod:`txbedrock.config`, and so
are in none of these tables. A feature that begins to use a key takes it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from txbedrock.config.fields import Kind, a_list, a_mapping, anything, boolean, number, text
from txbedrock.core.pricekeys import LITELLM_WITHOUT_EFFECT

__all__ = [
    "CREDENTIAL",
    "GENERAL_SETTINGS",
    "LITELLM_PARAMS",
    "LITELLM_SETTINGS",
    "MODEL",
    "MODEL_INFO",
    "ROOT",
    "ROUTER_SETTINGS",
]

_any = Kind(anything)
_bool = Kind(boolean)
_list = Kind(a_list)
_map = Kind(a_mapping)
_text = Kind(text)
_amount = Kind(number(0, inf))
_count = Kind(number(0, inf, whole=True))
_port = Kind(number(1, 65535, whole=True))

# What its author relies on to keep somebody out, or within a limit.
_limit = Kind(number(0, inf), restricts=True)
_limit_count = Kind(number(0, inf, whole=True), restricts=True)
_limit_list = Kind(a_list, restricts=True)
_limit_map = Kind(a_mapping, restricts=True)
_limit_text = Kind(text, restricts=True)

# For what Bedrock bills nobody by.
_prices = dict.fromkeys(LITELLM_WITHOUT_EFFECT, _any)

ROOT: Mapping[str, Kind] = {
    "callback_settings": _map,
    "files_settings": _list,
    "finetune_settings": _list,
    "guardrails": _limit_list,
    "mcp_servers": _map,
    "prompts": _list,
    "search_tools": _list,
    "vector_store_registry": _list,
}

MODEL: Mapping[str, Kind] = {}

CREDENTIAL: Mapping[str, Kind] = {"credential_info": _map}

LITELLM_PARAMS: Mapping[str, Kind] = {
    "use_in_pass_through": _bool,
    "mock_response": _any,
    **_prices,
    "cooldown_time": _amount,
    "merge_reasoning_content_in_choices": _bool,
    "drop_params": _bool,
    "extra_headers": _map,
    "extra_body": _map,
    "max_tokens": _count,
    "temperature": _amount,
    "top_p": _amount,
    "guardrailConfig": _limit_map,
}

MODEL_INFO: Mapping[str, Kind] = {
    "mode": _text,
    "supported_environments": _limit_list,
    **_prices,
    "description": _any,
    "metadata": _any,
    "max_tokens": _count,
    "max_input_tokens": _count,
    "max_output_tokens": _count,
}

ROUTER_SETTINGS: Mapping[str, Kind] = {
    "enable_pre_call_checks": _bool,
    "routing_strategy_args": _map,
    "provider_budget_config": _limit_map,
    "redis_host": _text,
    "redis_port": _port,
    "redis_password": _text,
    "redis_url": _text,
    "redis_db": _count,
    "cache_responses": _bool,
    "cache_kwargs": _map,
    "caching_groups": _list,
    "client_ttl": _amount,
    "debug_level": _text,
    "default_litellm_params": _map,
    "optional_pre_call_checks": _list,
    "polling_interval": _amount,
    "set_verbose": _bool,
}

GENERAL_SETTINGS: Mapping[str, Kind] = {
    "database_type": _text,
    "database_args": _map,
    "database_connection_pool_limit": _count,
    "database_connection_timeout": _amount,
    "max_parallel_requests": _limit_count,
    "global_max_parallel_requests": _limit_count,
    "max_response_size_mb": _limit,
    "custom_auth": _limit_text,
    "completion_model": _text,
    "infer_model_from_keys": _bool,
    "alerting": _list,
    "alerting_threshold": _amount,
    "alerting_args": _map,
    "alert_types": _list,
    "alert_to_webhook_url": _map,
    "pass_through_endpoints": _list,
    "user_header_mappings": _list,
    "forward_client_headers_to_llm_api": _bool,
    "store_model_in_db": _bool,
    "store_prompts_in_spend_logs": _bool,
    "maximum_spend_logs_retention_period": _any,
    "maximum_spend_logs_retention_interval": _any,
    "disable_spend_updates": _bool,
    "disable_budget_reservation": _bool,
    "disable_master_key_return": _bool,
    "disable_reset_budget": _bool,
    "disable_adding_master_key_hash_to_db": _bool,
    "disable_retry_on_max_parallel_request_limit_error": _bool,
    "litellm_key_header_name": _text,
    "allowed_ips": _limit_list,
    "allowed_routes": _limit_list,
    "admin_only_routes": _limit_list,
    "public_routes": _list,
    "enable_drain_endpoint": _bool,
    "enable_jwt_auth": Kind(boolean, restricts=True),
    "litellm_jwtauth": _limit_map,
    "enforce_user_param": Kind(boolean, restricts=True),
    "enable_oauth2_auth": Kind(boolean, restricts=True),
    "enable_oauth2_proxy_auth": Kind(boolean, restricts=True),
    "oauth2_config_mappings": _map,
    "key_management_system": _text,
    "key_management_settings": _map,
    "service_account_settings": _map,
    "role_permissions": _limit_list,
    "proxy_batch_write_at": _amount,
    "proxy_batch_polling_interval": _amount,
    "proxy_budget_rescheduler_min_time": _amount,
    "proxy_budget_rescheduler_max_time": _amount,
    "token_rate_limit_type": _text,
    "block_robots": _bool,
    "ui_access_mode": _any,
    "use_redis_transaction_buffer": _bool,
    "use_shared_health_check": _bool,
}

LITELLM_SETTINGS: Mapping[str, Kind] = {
    "callbacks": _any,
    "success_callback": _list,
    "failure_callback": _list,
    "service_callback": _list,
    "service_callbacks": _list,
    "drop_params": _bool,
    "modify_params": _bool,
    "set_verbose": _bool,
    "json_logs": _bool,
    "max_budget": _limit,
    "budget_duration": _text,
    "default_internal_user_params": _map,
    "default_key_generate_params": _map,
    "default_team_settings": _list,
    "default_team_params": _map,
    "upperbound_key_generate_params": _limit_map,
    "key_generation_settings": _limit_map,
    "max_internal_user_budget": _limit,
    "internal_user_budget_duration": _text,
    "max_ui_session_budget": _limit,
    "cache": _bool,
    "cache_params": _map,
    "disable_copilot_system_to_assistant": _bool,
    "ssl_certificate": _text,
    "turn_off_message_logging": _bool,
    "redact_user_api_key_info": _bool,
    "guardrails": _limit_list,
    "langfuse_default_tags": _list,
    "langfuse_prompt_version": _any,
    "require_auth_for_metrics_endpoint": _bool,
    "prometheus_initialize_budget_metrics": _bool,
    "prometheus_metrics_config": _list,
    "custom_prometheus_metadata_labels": _list,
    "custom_prometheus_tags": _list,
    "enable_preview_features": _bool,
    "enable_json_schema_validation": _bool,
    "enable_end_user_cost_tracking_prometheus_only": _bool,
    "disable_end_user_cost_tracking": _bool,
    "disable_end_user_cost_tracking_prometheus_only": _bool,
    "disable_hf_tokenizer_download": _bool,
    "extra_spend_tag_headers": _list,
    "force_ipv4": _bool,
    "model_group_settings": _map,
    "public_model_groups": _list,
    "s3_callback_params": _map,
    "store_audit_logs": _bool,
    "telemetry": _bool,
}
