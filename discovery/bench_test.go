package discovery

import (
	"fmt"
	"testing"
	"time"
)

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		w := newWatch(b, Config{}, many(n)...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Pick(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("%d/parallel", n), func(b *testing.B) {
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					_, _ = w.Pick()
				}
			})
		})
	}
}

func BenchmarkKeep(b *testing.B) {
	w := newWatch(b, Config{}, many(1000)...)
	b.ReportAllocs()
	for b.Loop() {
		w.Keep("10.0.1.17:80")
	}
}

func BenchmarkTransportPick(b *testing.B) {
	deadline := time.Now().Add(time.Hour)
	for _, n := range []int{1, 10, 1000} {
		t, err := NewTransport(newWatch(b, Config{}, many(n)...), TransportConfig{})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := t.pick(b.Context(), deadline, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
