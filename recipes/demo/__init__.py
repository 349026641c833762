"""A synthetic corpus, spoken by drawn eSpeak NG voices on first use."""

LICENCE = "none needed: synthetic voices"
