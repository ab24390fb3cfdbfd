package ctl

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func FuzzRequestsAreAnsweredInJSON(f *testing.F) {
	f.Add("GET", "/v1/status", "")
	f.Add("POST", "/v1/ping", `{"to":"20"}`)
	f.Add("POST", "/v1/tickets", `{"site":"20","prefixes":["192.168.20.0/24"],"ttlNanos":3600000000000}`)
	f.Add("POST", "/v1/tickets", `{"site":"20","prefixes":["0.0.0.0/0",""],"ttlNanos":-1,"for":"AAAA"}`)
	f.Add("POST", "/v1/matrix/hosts", `{"hosts":["192.168.20.101","fe80::1%eth0",null]}`)
	f.Add("POST", "/v1/ping", `{"to":{}}[`)
	f.Add("PUT", "/v1/../../etc", "")
	f.Add("PUT", "/v1/routesets/pods", `{"announce":["10.128.0.0/18"],"lan":[{"prefix":"10.128.1.0/24","via":"192.168.10.101"}]}`)
	f.Add("PUT", "/v1/routesets/%2e%2e", `{"lan":[{}]}`)
	f.Add("DELETE", "/v1/routesets/pods", "")
	f.Add("POST", "/v1/grants", `{"gateway":"gw-20","prefixes":["10.128.0.0/18"]}`)
	f.Add("POST", "/v1/grants", `{"gateway":"gw-20","site":"9","prefixes":[""]}`)
	s := &Server{Mesh: newFakeMesh(f), RouteSets: new(fakeKeeper)}
	handler := s.handler(f.Context())
	f.Fuzz(func(t *testing.T, method, path, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://meshd/"+strings.TrimLeft(path, "/"), strings.NewReader(body))
		if err != nil || strings.Contains(req.URL.Path, "events") {
			return // no client can send it, or it streams until it is cut off
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		if w.Code >= 300 && w.Code < 400 {
			return // ServeMux redirects paths with dots and double slashes
		}
		var v any
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			t.Errorf("%s %s %q: status %d, body %q: %v", method, path, body, w.Code, w.Body.Bytes(), err)
		}
		if e, isError := v.(map[string]any)["error"]; isError != (w.Code >= 400) {
			t.Errorf("%s %s %q: status %d with error %v", method, path, body, w.Code, e)
		}
	})
}
