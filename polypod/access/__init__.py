"""Who may do what: API keys with scopes and limits, and the record of administrative acts."""
