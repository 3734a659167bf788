"""The phases of a training (`recipe`), each a file here: what a client computes, and what the sum over clients means.

A phase holds a vector that is federated, float32 [D]. What goes on between client and server is the same for all: the
vector goes out, a client's `fit` answers with what is to be added to it, and the server adds the mean of the clients'.
At the end `finish` puts the vector where it belongs in the model, and the next phase begins.
"""
