"""Where jobs are kept: `store.Store` on SQLite or PostgreSQL, and what it is made of."""
