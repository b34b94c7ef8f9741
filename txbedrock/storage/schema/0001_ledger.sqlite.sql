-- What was charged, and to whom. Money is in pico-USD, time in microseconds since
-- 1970, UTC. STRICT keeps a number that does not fit from becoming a float; the
-- bound of 9 million dollars keeps a sum from even coming near to 64 bits.

CREATE TABLE txbedrock_ledger (
    request_id TEXT NOT NULL PRIMARY KEY,
    started_us INTEGER NOT NULL,
    first_byte_us INTEGER NOT NULL,
    ended_us INTEGER NOT NULL,
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
    attempts INTEGER NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL,
    units TEXT NOT NULL, -- a JSON object
    tier TEXT NOT NULL,
    usage_source TEXT NOT NULL,
    problem TEXT NOT NULL,
    cost_picousd INTEGER CHECK (cost_picousd <= 9000000000000000000), -- NULL: not known
    price_id TEXT NOT NULL,
    price_version TEXT NOT NULL,
    bytes_up INTEGER NOT NULL,
    bytes_down INTEGER NOT NULL
) STRICT;

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
    started_us INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    PRIMARY KEY (tag, started_us, request_id)
) STRICT, WITHOUT ROWID;

-- Sums of the ledger, written in the transaction that writes its rows.
-- kind: all, key, user, team, end_user, tag, model_group, model, deployment.

CREATE TABLE txbedrock_totals (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    day INTEGER NOT NULL, -- since 1970, UTC
    label TEXT NOT NULL,
    requests INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    cost_picousd INTEGER NOT NULL CHECK (cost_picousd <= 9000000000000000000),
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL,
    PRIMARY KEY (kind, name, day)
) STRICT, WITHOUT ROWID;
