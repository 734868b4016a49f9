{{- /* The pod of the Deployment and the DaemonSet. Takes {root, gpu}. */ -}}
{{- define "llm-headroom.pod" -}}
{{- $root := .root -}}
{{- with $root.Values -}}
metadata:
  labels:
    {{- include "llm-headroom.labels" (dict "root" $root "labels" .podLabels) | nindent 4 }}
  {{- with .podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "llm-headroom.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .terminationGracePeriodSeconds }}
  {{- with concat (dig "imagePullSecrets" list .global) .imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if .hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- if $.gpu }}
  {{- with .daemonset.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if .daemonset.hostPID }}
  hostPID: true
  {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml .podSecurityContext | nindent 4 }}
  containers:
    - name: llm-headroom
      image: {{ include "llm-headroom.image" $root }}
      imagePullPolicy: {{ .image.pullPolicy }}
      args: {{ concat (list "run" "--config" "/etc/llm-headroom/config.yml" "--no-discover" (ternary "--gpu" "--no-gpu" $.gpu)) .extraArgs | toJson }}
      {{- $env := fromJsonArray (include "llm-headroom.identity" $root) }}
      {{- $env = append $env (dict "name" "LLM_HEADROOM_LISTEN" "value" (printf ":%d" (int .listenPort))) }}
      {{- if $.gpu }}
      {{- $env = append $env (dict "name" "NVIDIA_VISIBLE_DEVICES" "value" .daemonset.visibleDevices) }}
      {{- $env = append $env (dict "name" "NVIDIA_DRIVER_CAPABILITIES" "value" "utility") }}
      {{- end }}
      {{- if .webConfigSecret }}
      {{- $env = append $env (dict "name" "LLM_HEADROOM_WEB_CONFIG" "value" "/etc/llm-headroom-web/web.yml") }}
      {{- end }}
      env:
        {{- include "llm-headroom.env" (dict "own" $env "extra" .extraEnv) | nindent 8 }}
      ports:
        - {name: llm-headroom, containerPort: {{ .listenPort }}}
      {{- with .livenessProbe }}
      livenessProbe:
        {{- include "llm-headroom.probe" (dict "root" $root "probe" . "path" "/-/healthy") | nindent 8 }}
      {{- end }}
      {{- with .readinessProbe }}
      readinessProbe:
        {{- include "llm-headroom.probe" (dict "root" $root "probe" . "path" "/-/ready") | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        {{- toYaml .securityContext | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/llm-headroom, readOnly: true}
        {{- if .webConfigSecret }}
        - {{ include "llm-headroom.webConfigMount" $root }}
        {{- end }}
        {{- with .extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "llm-headroom.fullname" $root }}}
    {{- with .webConfigSecret }}
    - {{ include "llm-headroom.webConfigVolume" . }}
    {{- end }}
    {{- with .extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with (ternary (merge (deepCopy .nodeSelector) .daemonset.nodeSelector) .nodeSelector $.gpu) }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with (ternary (concat .tolerations .daemonset.tolerations) .tolerations $.gpu) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}
