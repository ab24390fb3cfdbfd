// Command web is the workload of the laboratory's clusters: it answers every HTTP request with the names of its pod and
// node and with the address that asked. "web -get URL" is the client of it, because its image has nothing else inside.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

// patience is how long a request may take.
const patience = 5 * time.Second

func main() {
	listen := flag.String("listen", ":8080", "address to listen on")
	url := flag.String("get", "", "fetch this URL, print what it says and end")
	flag.Parse()
	if *url != "" {
		if err := get(*url); err != nil {
			log.Fatal(err)
		}
		return
	}
	server := &http.Server{Addr: *listen, Handler: http.HandlerFunc(answer), ReadHeaderTimeout: patience}
	log.Fatal(server.ListenAndServe())
}

// answer says who was reached, from where and under which name.
func answer(w http.ResponseWriter, r *http.Request) {
	pod, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "pod=%s node=%s client=%s host=%s\n", pod, os.Getenv("NODE_NAME"), r.RemoteAddr, r.Host)
}

func get(url string) error {
	client := http.Client{Timeout: patience}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, response.Status)
	}
	return nil
}
