-- An attempt whose worker was lost while a person was asked goes on with the next claim; it is not a new attempt.

ALTER TABLE executions ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;
