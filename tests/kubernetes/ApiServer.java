import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.fabric8.kubernetes.client.server.mock.KubernetesCrudDispatcher;
import io.fabric8.kubernetes.client.server.mock.KubernetesMockServer;
import io.fabric8.mockwebserver.Context;
import io.fabric8.mockwebserver.MockWebServer;
import io.fabric8.mockwebserver.dsl.HttpMethod;
import io.fabric8.mockwebserver.http.Buffer;
import io.fabric8.mockwebserver.http.MockResponse;
import io.fabric8.mockwebserver.http.RecordedRequest;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.util.HashMap;

/** An API server of Kubernetes on loopback, which keeps what it is given; prints its port, and ends with its stdin. */
public class ApiServer {
  /** What fabric8's own leaves out, and Spark needs: pods begin as pending, and an apply of what is not there makes it. */
  private static class Resources extends KubernetesCrudDispatcher {
    private final ObjectMapper json = new ObjectMapper();

    @Override
    public MockResponse handleCreate(RecordedRequest request) {
      try {
        var resource = (ObjectNode) json.readTree(request.getBody().getBytes());
        if (resource.path("kind").asText().equals("Pod")) {
          resource.putObject("status").put("phase", "Pending");
        }
        return super.handleCreate(
            as(request, HttpMethod.POST, request.getPath(), json.writeValueAsBytes(resource)));
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }

    @Override
    public MockResponse handlePatch(RecordedRequest request) {
      String path = request.getPath().split("\\?")[0];
      boolean applies = String.valueOf(request.getHeader("Content-Type")).startsWith("application/apply-patch");
      if (!applies || handleGet(path).code() != 404) {
        return super.handlePatch(request);
      }
      String collection = path.substring(0, path.lastIndexOf('/'));
      return handleCreate(as(request, HttpMethod.POST, collection, request.getBody().getBytes()));
    }

    private static RecordedRequest as(RecordedRequest request, HttpMethod method, String path, byte[] body) {
      return new RecordedRequest(
          request.getHttpVersion(), method, path, request.getHeaders(), new Buffer(body));
    }
  }

  public static void main(String[] arguments) throws Exception {
    var server = new KubernetesMockServer(
        new Context(), new MockWebServer(), new HashMap<>(), new Resources(), false);
    server.init(InetAddress.getLoopbackAddress(), 0);
    System.out.println(server.getPort());
    while (System.in.read() >= 0) {
    }
    server.destroy();
  }
}
