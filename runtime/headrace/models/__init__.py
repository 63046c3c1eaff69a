"""Models on disk: what a repository holds, what a configuration says, fills in and may not say."""
