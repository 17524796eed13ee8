"""One model of TGI 3.3.7, used by a discrete-event simulator of fleets and by an HTTP server that stands in for it."""
