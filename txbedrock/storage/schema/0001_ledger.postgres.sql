-- What was charged, and to whom. Money is in pico-USD, time in microseconds since
-- 1970, UTC. A row's cost fits into 64 bits (9.2 million dollars), a total may not.

CREATE TABLE txbedrock_ledger (
    request_id TEXT COLLATE "C" NOT NULL PRIMARY KEY, -- in the order of its bytes
    started_us BIGINT NOT NULL,
    first_byte_us BIGINT NOT NULL,
    ended_us BIGINT NOT NULL,
    aws_request_id TEXT NOT NULL,
    key_hash TEXT NOT NULL,
    key_alias TEXT NOT NULL,
    user_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    end_user TEXT NOT NULL,
    tags TEXT NOT NULL, -- a JSON list
    session_id TEXT NOT NULL,
    client TEXT NOT NULL,
    service TEXT NOT NULL,
    operation TEXT NOT NULL,
    model_name TEXT NOT NULL,
    model_id TEXT NOT NULL,
    deployment TEXT NOT NULL,
    region TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    units TEXT NOT NULL, -- a JSON object
    tier TEXT NOT NULL,
    usage_source TEXT NOT NULL,
    problem TEXT NOT NULL,
    cost_picousd BIGINT, -- NULL: not known
    price_id TEXT NOT NULL,
    price_version TEXT NOT NULL,
    bytes_up BIGINT NOT NULL,
    bytes_down BIGINT NOT NULL
);

CREATE INDEX txbedrock_ledger_started ON txbedrock_ledger (started_us);
CREATE INDEX txbedrock_ledger_key ON txbedrock_ledger (key_hash, started_us)
    WHERE key_hash <> '';
CREATE INDEX txbedrock_ledger_user ON txbedrock_ledger (user_id, started_us)
    WHERE user_id <> '';
CREATE INDEX txbedrock_ledger_team ON txbedrock_ledger (team_id, started_us)
    WHERE team_id <> '';
CREATE INDEX txbedrock_ledger_end_user ON txbedrock_ledger (end_user, started_us)
    WHERE end_user <> '';
CREATE INDEX txbedrock_ledger_model_name ON txbedrock_ledger (model_name, started_us)
    WHERE model_name <> '';
CREATE INDEX txbedrock_ledger_model_id ON txbedrock_ledger (model_id, started_us)
    WHERE model_id <> '';

CREATE TABLE txbedrock_ledger_tags (
    tag TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tag, started_us, request_id)
);

-- Sums of the ledger, written in the transaction that writes its rows.
-- kind: all, key, user, team, end_user, tag, model_group, model, deployment.

CREATE TABLE txbedrock_totals (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    day BIGINT NOT NULL, -- since 1970, UTC
    label TEXT NOT NULL,
    requests BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    cost_picousd NUMERIC NOT NULL,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_5m_tokens BIGINT NOT NULL,
    cache_write_1h_tokens BIGINT NOT NULL,
    PRIMARY KEY (kind, name, day)
) WITH (fillfactor = 70); -- updated in place, over and over
