package todo

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// description parses openapi.yaml once for all tests.
var description = sync.OnceValues(func() (routers.Router, error) {
	document, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	if err := document.Validate(context.Background()); err != nil {
		return nil, err
	}
	// What curl sends under the form type is JSON, and the document says so.
	openapi3filter.RegisterBodyDecoder("application/x-www-form-urlencoded", openapi3filter.JSONBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/yaml", openapi3filter.PlainBodyDecoder)
	return gorillamux.NewRouter(document)
})

type beyondSchemaKey struct{}

// beyondSchema marks a request that the handler refuses for a reason no schema can state, such as a name given twice.
func beyondSchema(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), beyondSchemaKey{}, true))
}

// checkedAgainstOpenAPI fails the test when handler and openapi.yaml disagree: about what an answer looks like, or about which
// requests are valid, in either direction.
func checkedAgainstOpenAPI(t *testing.T, next http.Handler) http.Handler {
	router, err := description()
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var sent []byte
		if r.Body != nil {
			sent, _ = io.ReadAll(r.Body) // A body that breaks off is handed on as it is, below.
			r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(sent), r.Body))
		}
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		checkExchange(t, router, r, sent, recorder)

		for name, values := range recorder.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(recorder.Code)
		if _, err := w.Write(recorder.Body.Bytes()); err != nil && r.Method != http.MethodHead {
			t.Logf("pass the answer on: %v", err)
		}
	})
}

func checkExchange(t *testing.T, router routers.Router, r *http.Request, sent []byte, w *httptest.ResponseRecorder) {
	t.Helper()
	request := r.Clone(context.Background())
	request.Body = io.NopCloser(bytes.NewReader(sent))
	if !strings.HasPrefix(request.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		request.Header.Set("Content-Type", "application/json") // The document allows every JSON type, and none.
	}
	if len(request.URL.Path) > 1 {
		request.URL.Path = strings.TrimSuffix(request.URL.Path, "/")
	}
	if request.Method == http.MethodHead {
		request.Method = http.MethodGet
	}
	route, params, err := router.FindRoute(request)
	if err != nil {
		if w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("openapi.yaml has no %s %s, but the handler answers %d", r.Method, r.URL, w.Code)
		}
		return
	}
	input := &openapi3filter.RequestValidationInput{Request: request, PathParams: params, Route: route}
	options := &openapi3filter.Options{IncludeResponseStatus: true}
	output := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: w.Code, Header: w.Header(), Options: options,
		Body: io.NopCloser(bytes.NewReader(w.Body.Bytes())),
	}
	options.ExcludeResponseBody = r.Method == http.MethodHead
	if err := openapi3filter.ValidateResponse(context.Background(), output); err != nil {
		t.Errorf("the answer to %s %s is not as openapi.yaml says: %v", r.Method, r.URL, err)
	}
	err = openapi3filter.ValidateRequest(context.Background(), input)
	switch refused := refusedAsInvalid(w); {
	case err != nil && w.Code < 300:
		t.Errorf("the handler took a %s %s that openapi.yaml forbids: %v", r.Method, r.URL, err)
	case err == nil && refused && r.Context().Value(beyondSchemaKey{}) == nil:
		t.Errorf("the handler refused a %s %s %s that openapi.yaml allows: %s", r.Method, r.URL, sent, w.Body)
	}
}

func refusedAsInvalid(w *httptest.ResponseRecorder) bool {
	var answer errorAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		return false
	}
	return answer.Error.Code == codeInvalid || answer.Error.Code == codeNotJSON
}

func TestOpenAPI_DescribesEveryRouteAndNoOther(t *testing.T) {
	document, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{config: HandlerConfig{Metrics: newService(t, newFakeStore()).metrics}}
	a.route()
	for path, item := range document.Paths.Map() {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			target := strings.ReplaceAll(path, "{id}", "1")
			served := false
			for _, allowed := range a.allowed(newRequest(method, target, "").WithContext(
				context.WithValue(context.Background(), exchangeKey{}, &exchange{}))) {
				served = served || allowed == method
			}
			if described := item.GetOperation(method) != nil; described != served {
				t.Errorf("%s %s: described %v, served %v", method, path, described, served)
			}
		}
	}
}

func TestOpenAPI_ListsEveryErrorCode(t *testing.T) {
	for _, code := range []string{codeInvalid, codeNotJSON, codeBodyIncomplete, codeNotFound, codeNoSuchPath, codeMethodNotAllowed,
		codeBodyTimeout, codeBodyTooLarge, codeMediaType, codeKeyReused, codeInternal, codeUnavailable, codeOutcomeUnknown, codeNotReady} {
		if !bytes.Contains(openAPI, []byte("- "+code+"\n")) {
			t.Errorf("openapi.yaml does not know the code %q", code)
		}
	}
}
