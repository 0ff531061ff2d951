"""The Hub: who you are there (auth), what it answers (access), how models arrive (download), where they lie (cache)."""
