-- What is granted: keys, users, teams, customers, budgets, tags. The document of each
-- is JSON and says everything; beside it stands what is searched and sorted by. Time
-- is in microseconds since 1970, UTC. Of secrets only SHA-256 is kept.
-- COLLATE "C": in the order of its bytes.

CREATE TABLE txbedrock_keys (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alias TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL,
    team_id TEXT COLLATE "C" NOT NULL,
    budget_id TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE UNIQUE INDEX txbedrock_keys_alias ON txbedrock_keys (alias) WHERE alias <> '';
CREATE INDEX txbedrock_keys_created ON txbedrock_keys (created_us, id);
CREATE INDEX txbedrock_keys_user ON txbedrock_keys (user_id);
CREATE INDEX txbedrock_keys_team ON txbedrock_keys (team_id);
CREATE INDEX txbedrock_keys_budget ON txbedrock_keys (budget_id);

CREATE TABLE txbedrock_users (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alias TEXT COLLATE "C" NOT NULL,
    email TEXT COLLATE "C" NOT NULL,
    budget_id TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE INDEX txbedrock_users_created ON txbedrock_users (created_us, id);
CREATE INDEX txbedrock_users_email ON txbedrock_users (email);
CREATE INDEX txbedrock_users_budget ON txbedrock_users (budget_id);

CREATE TABLE txbedrock_teams (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alias TEXT COLLATE "C" NOT NULL,
    budget_id TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL -- without its members
);

CREATE INDEX txbedrock_teams_created ON txbedrock_teams (created_us, id);
CREATE INDEX txbedrock_teams_budget ON txbedrock_teams (budget_id);

CREATE TABLE txbedrock_customers (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alias TEXT COLLATE "C" NOT NULL,
    budget_id TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE INDEX txbedrock_customers_created ON txbedrock_customers (created_us, id);
CREATE INDEX txbedrock_customers_budget ON txbedrock_customers (budget_id);

CREATE TABLE txbedrock_budgets (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE INDEX txbedrock_budgets_created ON txbedrock_budgets (created_us, id);

CREATE TABLE txbedrock_tags (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    budget_id TEXT COLLATE "C" NOT NULL,
    created_us BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    updated_us BIGINT NOT NULL,
    document TEXT NOT NULL
);

CREATE INDEX txbedrock_tags_created ON txbedrock_tags (created_us, id);
CREATE INDEX txbedrock_tags_budget ON txbedrock_tags (budget_id);

-- The secrets that keys answer to, and the access key ids derived from them.

CREATE TABLE txbedrock_tokens (
    hash TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    key_id TEXT COLLATE "C" NOT NULL REFERENCES txbedrock_keys ON DELETE CASCADE,
    access_key_id TEXT COLLATE "C" NOT NULL,
    expires_us BIGINT NOT NULL
);

CREATE INDEX txbedrock_tokens_key ON txbedrock_tokens (key_id);
CREATE UNIQUE INDEX txbedrock_tokens_access_key_id ON txbedrock_tokens (access_key_id)
    WHERE access_key_id <> '';

CREATE TABLE txbedrock_members (
    team_id TEXT COLLATE "C" NOT NULL REFERENCES txbedrock_teams ON DELETE CASCADE,
    user_id TEXT COLLATE "C" NOT NULL,
    place BIGINT NOT NULL, -- among the team's members
    document TEXT NOT NULL,
    PRIMARY KEY (team_id, user_id)
);

CREATE INDEX txbedrock_members_user ON txbedrock_members (user_id);

-- Who changed what. Rows are added and never changed.

CREATE TABLE txbedrock_audit (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of writing
    at_us BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    kind TEXT NOT NULL,
    grant_id TEXT COLLATE "C" NOT NULL,
    before_document TEXT, -- NULL: it was not there
    after_document TEXT -- NULL: it is gone
);

CREATE INDEX txbedrock_audit_at ON txbedrock_audit (at_us, number);
CREATE INDEX txbedrock_audit_grant ON txbedrock_audit (kind, grant_id, at_us, number);
