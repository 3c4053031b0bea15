package discovery_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"time"

	"example.com/todo/discovery"
)

// A database is looked up for each new connection, and a pooled connection is asked after before each use.
func ExampleWatch() {
	ctx := context.Background()
	w, err := discovery.NewWatch(discovery.Config{}, "mysql")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = w.Run(ctx) }()

	if _, err := w.Instances(ctx); err != nil { // waits for the first answer only
		log.Fatal(err)
	}
	place, err := w.Pick()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("dial", place.Addr)
	fmt.Println("still good:", w.Keep(place.Addr))
}

// Any http.Client can speak to a service by its name.
func ExampleTransport() {
	ctx := context.Background()
	w, err := discovery.NewWatch(discovery.Config{}, "todo")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = w.Run(ctx) }()
	t, err := discovery.NewTransport(w, discovery.TransportConfig{})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: t}
	resp, err := client.Get("http://todo/todo")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
}

// A service registers when it serves, and leaves before it stops.
func ExampleRegistration() {
	ctx := context.Background()
	r, err := discovery.NewRegistration(discovery.Config{}, discovery.Service{
		Name: "todo", ID: "todo-1", Address: "10.0.0.14", Port: 8080,
		Meta: map[string]string{"version": "1.2.3", "started": time.Now().UTC().Format(time.RFC3339)},
	})
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = r.Run(ctx) }()

	// … serve, until told to stop; then:
	if err := r.Deregister(ctx); err != nil {
		log.Print(err) // no reason to stay
	}
	// … and drain.
}

// The active Vault is asked for before each call to Vault.
func ExampleVaultFinder() {
	ctx := context.Background()
	w, err := discovery.NewWatch(discovery.Config{}, "vault")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = w.Run(ctx) }()
	f, err := discovery.NewVaultFinder(w, discovery.VaultConfig{})
	if err != nil {
		log.Fatal(err)
	}
	url, err := f.Addr(ctx)
	if err != nil {
		log.Fatal(err) // for each Vault there is, why it is not active
	}
	fmt.Println(url)
}
