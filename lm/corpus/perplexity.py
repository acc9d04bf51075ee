class Perplexity:
    pass
